"""The network of FID on a mesh: from a file of published weights to the features of images."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigr_jax.interop import files
from bigr_jax.interop.layout import UNUSED
from bigr_jax.interop.torch import from_torch
from bigr_jax.metrics.comparable import Features
from bigr_jax.models.inception import InceptionV3
from bigr_jax.train.sharding import batch_sharding, replicated


class InceptionReader:
    """Reads images through Inception-v3, rows over the mesh, through one program per image size.

    path  .npz or .safetensors of the published state_dict; see `interop.names_inception`
    size  images that are read at once; it is rounded up to what the mesh divides
    Raises UserError as `interop.files.read` and `from_torch` do.
    """

    def __init__(self, path: str, mesh: Mesh, size: int) -> None:
        found = from_torch(InceptionV3(), files.read(path))
        found.pop(UNUSED, None)
        self.name = f"{os.path.basename(path)} sha256:{_digest(path)}"
        self.size = round_up(size, mesh)
        self._mesh, self._programs = mesh, dict[tuple[int, ...], Any]()
        self._variables = jax.device_put(
            jax.tree.map(lambda x: x.astype(np.float32), found), replicated(mesh)
        )

    def __call__(self, images: np.ndarray) -> Features:
        """Returns what is read of images, uint8 [n, H, W, 3], n of at most `size`."""
        count = len(images)
        if count < self.size:
            images = np.pad(images, ((0, self.size - count), (0, 0), (0, 0), (0, 0)), "edge")
        batch = place(images, self._mesh)
        program = self._programs.get(images.shape)
        if program is None:
            program = self._programs[images.shape] = compiled("Inception-v3", self._run(), batch)
        found = jax.device_get(program(self._variables, batch))
        return Features(*(x[:count] for x in found))

    def _run(self) -> Callable[..., Any]:
        def read(variables: Any, images: jax.Array) -> Features:
            taps: Any = InceptionV3().apply(variables, images)
            return Features(taps.pool, taps.spatial, taps.logits_unbiased)

        # Every host needs the features of all images.
        run = jax.jit(read, out_shardings=replicated(self._mesh))
        return lambda batch: run.lower(self._variables, batch)


def place(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Returns the global array of rows that every host has whole, spread over data and fsdp."""
    where = batch_sharding(mesh)
    return jax.make_array_from_callback(rows.shape, where, lambda index: rows[index])


def round_up(size: int, mesh: Mesh) -> int:
    """Returns the least number from `size` on that spreads evenly over data and fsdp."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-size // rows) * rows


def compiled(what: str, lower: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the program that `lower(*arguments)` gives, compiled, and says so meanwhile."""
    begin = time.perf_counter()
    _say(f"compiling {what}, this may take a while ...")
    program = lower(*arguments).compile()
    _say(f"compiled in {time.perf_counter() - begin:.1f} s")
    return program


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
