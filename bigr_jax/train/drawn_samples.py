"""Many samples of a trained stage, of every class equally often, in a file to go on with.

While they are drawn, NAME.npz.part holds the images as npy and NAME.npz.json how many there are and
what they are made of; the finished NAME.npz is one that other evaluators read: "arr_0", uint8
images, and "arr_1", their labels.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.data.source import with_progress
from bigr_jax.errors import UserError
from bigr_jax.metrics import reference
from bigr_jax.train import hosts
from bigr_jax.train.inception_reader import compiled, place
from bigr_jax.train.loop import Interrupted, scope, stopping
from bigr_jax.train.run import Run
from bigr_jax.train.sharding import replicated, root_key

LABELS = "arr_1"
# Settings that do not change what is drawn.
_ELSEWHERE = ("mesh.", "sharding", "report.", "study.", "logging.")


class DrawnSamples:
    """`count` samples of the last stage of a run that draws, `size` at a time; batch i draws with
    `fold_in(key(seed), i)`.

    path  the npz that is written
    Raises UserError where no stage draws or the stage is not trained, and where the file holds
    other samples.
    """

    def __init__(self, run: Run, path: str, count: int, seed: int, size: int) -> None:
        self.stage = drawing_stage(run)
        self.path, self._run, self._seed = path, run, seed
        self._count, self._size = count, size
        self._variables, self._given = run.variables(self.stage), run.given(self.stage)
        self.labels = balanced_labels(count, run.config.data.num_classes, seed)
        made = {
            "slug": run.config.slug,
            "stage": self.stage,
            "weights": f"{checksum((self._variables, self._given)):08x}",
            "samples": count,
            "seed": seed,
            "batch": size,
            "config": {
                key: value
                for key, value in configs.flat(run.config).items()
                if not key.startswith(_ELSEWHERE)
            },
        }
        # As it comes back from a file.
        self.made: dict[str, Any] = json.loads(json.dumps(made))
        self._refuse_other()

    def batches(self) -> Iterator[np.ndarray]:
        """Yields all images, uint8 [size, H, W, 3], fewer in the last: what is on disk is read, the
        rest drawn and written.

        Raises Interrupted after SIGINT or SIGTERM, with what was drawn kept.
        """
        if _agreed(os.path.exists(self.path)):
            yield from _stored(self.path, self._count, self._size)
            return
        total = -(-self._count // self._size)
        kept = _agreed(_read_part(self.path).get("drawn", 0))
        if kept:
            yield from _stored(_part(self.path), kept, self._size)
        first = -(-kept // self._size)
        what = f"drawing {self._count} images" + f", {kept} are there" * bool(kept)
        draw = None
        with stopping() as stop, contextlib.closing(_Part(self)) as part:
            for index in with_progress(range(first, total), total - first, what):
                labels = self.labels[index * self._size : (index + 1) * self._size]
                padded = np.pad(labels, (0, self._size - len(labels)), mode="edge")
                if draw is None:
                    draw = self._program(padded)
                images = draw(index, padded)[: len(labels)]
                part.add(images)
                yield images
                signum = hosts.stop_agreed(stop)
                if signum and index + 1 < total:
                    raise Interrupted(
                        signum,
                        f"stopped at {(index + 1) * self._size} of {self._count} images, kept; the "
                        "same command goes on from there",
                    )
            part.finish(self.labels)

    def _program(self, labels: np.ndarray) -> Any:
        mesh, sample = self._run.mesh, self._run.methods[self.stage].sample
        assert sample is not None

        def draw(variables: Any, key: jax.Array, index: Any, labels: Any, given: Any) -> jax.Array:
            images = sample(variables, jax.random.fold_in(key, index), labels, given)
            return jnp.round(jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)

        run = jax.jit(draw, out_shardings=replicated(mesh))
        key = root_key(self._seed, mesh)

        def arguments(index: int, labels: np.ndarray) -> tuple[Any, ...]:
            return self._variables, key, np.int32(index), place(labels, mesh), self._given

        with scope(mesh):
            program = compiled("the sampler", run.lower, *arguments(0, labels))

        def call(index: int, labels: np.ndarray) -> np.ndarray:
            with scope(mesh):
                drawn = program(*arguments(index, labels))
            return reference.three_channels(np.asarray(drawn))

        return call

    def _refuse_other(self) -> None:
        if jax.process_index():
            return
        found = reference.read_made(self.path) if os.path.exists(self.path) else None
        found = found or _read_part(self.path).get("made")
        if os.path.exists(self.path) and found is None:
            raise UserError(f"--out={self.path} is there and was not drawn here; give another")
        if found is not None and found != self.made:
            changed = sorted(_flat(found).items() ^ _flat(self.made).items(), key=str)
            names = ", ".join(dict.fromkeys(name for name, _ in changed))
            raise UserError(f"{self.path} holds samples that differ in {names}; give another --out")


class _Part:
    """The unfinished file, written by the first process alone."""

    def __init__(self, owner: DrawnSamples) -> None:
        self._owner = owner
        self._map: Any = None
        self._writes = jax.process_index() == 0
        self._rows: int = _read_part(owner.path).get("drawn", 0)

    def add(self, images: np.ndarray) -> None:
        if not self._writes:
            return
        if self._map is None:
            self._map = self._opened(images.shape[1:])
        self._map[self._rows : self._rows + len(images)] = images
        self._map.flush()
        self._rows += len(images)
        files.write_json(_note(self._owner.path), {"drawn": self._rows, "made": self._owner.made})

    def finish(self, labels: np.ndarray) -> None:
        """Turns the part into the npz."""
        if not self._writes:
            return
        if self._map is None:
            self._map = np.load(_part(self._owner.path), mmap_mode="r")
        arrays = {reference.IMAGES: self._map, LABELS: labels.astype(np.int64)}
        reference.write(self._owner.path, arrays, self._owner.made)
        self.close()
        for path in (_part(self._owner.path), _note(self._owner.path)):
            os.remove(path)

    def close(self) -> None:
        self._map = None

    def _opened(self, shape: tuple[int, ...]) -> Any:
        path = _part(self._owner.path)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        form = np.lib.format.open_memmap
        if self._rows:
            return form(path, mode="r+")
        return form(path, mode="w+", dtype=np.uint8, shape=(len(self._owner.labels), *shape))


def drawing_stage(run: Run) -> str:
    """Returns the last stage of a run that draws. Raises UserError where there is none."""
    name = next((n for n in reversed(run.methods) if run.methods[n].sample is not None), None)
    if name is None:
        raise UserError(f"{run.config.slug} draws nothing: none of its stages has a sampler")
    return name


def balanced_labels(count: int, classes: int, seed: int) -> np.ndarray:
    """Returns int32 [count] labels: every class equally often, up to one, in a random order, since
    the Inception Score is of parts of the images.
    """
    order = np.random.Philox(key=np.asarray([seed, 0], np.uint64)).random_raw(count)
    return (np.arange(count) % classes)[np.argsort(order, kind="stable")].astype(np.int32)


def checksum(tree: Any) -> int:
    """Returns the sum of all bits of arrays, taken for 32-bit numbers: the same on every mesh."""

    @jax.jit
    def add(leaves: list[jax.Array]) -> jax.Array:
        total = jnp.zeros((), jnp.uint32)
        for number, leaf in enumerate(leaves):
            kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
            bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
            total += bits.sum(dtype=jnp.uint32) * jnp.uint32(2 * number + 1)
        return total

    return int(add([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]))


def _stored(path: str, count: int, size: int) -> Iterator[np.ndarray]:
    """The first images of a file."""
    if path.endswith(".npz"):
        yield from reference.read_images(path).batches(size)
        return
    images = np.load(path, mmap_mode="r")
    for start in range(0, count, size):
        yield np.array(images[start : min(start + size, count)])


def _agreed(value: int) -> int:
    """What the first process knows of its disk."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _part(path: str) -> str:
    return path + ".part"


def _note(path: str) -> str:
    return path + ".json"


def _read_part(path: str) -> Mapping[str, Any]:
    found = files.read_json(_note(path))
    return found if found is not None and os.path.exists(_part(path)) else {}


def _flat(made: Mapping[str, Any]) -> dict[str, str]:
    settings = {f"config.{k}": repr(v) for k, v in made.get("config", {}).items()}
    return {**{k: repr(v) for k, v in made.items() if k != "config"}, **settings}
