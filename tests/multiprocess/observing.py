"""Trains tests/tiny.py in a work directory and tells what others can compare, as JSON.

    python observing.py WORKDIR OTHER OUT [--coordinator=... --processes=... --process=...]

OTHER is a finished work directory, which is read, measured and drawn from; "" is none.
"""

from __future__ import annotations

import hashlib
import json
import sys

import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax.cli import command
from bigr_jax.gather import on_host
from bigr_jax.train import commands, hosts, loop, sharding
from bigr_jax.train.run import Run, opened

BATCHES = 30


def digest(tree) -> str:
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(on_host(leaf)).tobytes())
    return found.hexdigest()


def indices(run: Run, start: int) -> list[list[int]]:
    """The examples of each global batch, as the devices hold them, in order."""
    host = loop._host_batches(run.plan("first"), run.sources["train"], start, run.mesh)
    batches = loop.device_batches(host, run.mesh)
    found = [on_host(next(batches)["index"]).tolist() for _ in range(BATCHES)]
    batches.close()
    return found


def mesh_across_processes() -> list[float]:
    """What the devices get of a batch whose rows several processes hold."""
    mesh = sharding.make_mesh({"data": 2, "model": 2})
    share = hosts.share(mesh)
    rows = share.positions(np.arange(share.rows(8)), 8).astype(np.float32)
    (batch,) = loop.device_batches(iter([{"rows": rows}]), mesh)
    return on_host(batch["rows"]).tolist()


def observe(workdir: str, other: str) -> dict:
    config = configs.load("tests/tiny.py")
    commands.train(config, workdir)
    run = Run(config, workdir)
    told = {"indices": indices(run, 0), "later": indices(run, 20), "model": mesh_across_processes()}
    for name in other and ("first", "second"):
        run = opened(other, data=True)
        with run.checkpoints(name) as checkpoints:
            told[name] = digest(checkpoints.restore(run.plan(name).abstract)[0])
        told[f"{name} measured"] = run.evaluate(name)
    if other:
        path = commands.sample(other, f"{workdir}/drawn.png", None, 2, 0)
        told["picture"] = path
    return told


def main(words: list[str]) -> None:
    workdir, other, out, *rest = words
    spec = command.Command("observing", "", "", "", command.no_flags, lambda a: None, hosts=True)
    arguments = command.parse(spec, rest)
    with command._joined(arguments):
        found = observe(workdir, other)
        if jax.process_index() == 0:
            with open(out, "w") as file:
                json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1:])
