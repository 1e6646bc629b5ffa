"""Damages checkpoints in every way, and looks at what a run would go on from.

    python scripts/corrupt.py [--mutations=500] [--seed=0] [--config=scripts/recorder.py]
                              [--stage=recorder] [--json=FILE]

A stage is trained until three checkpoints are there. Each mutation is made to a copy of them, and
the newest good one is restored:

detected  the newest step that was not touched came back bit by bit, and the log names the other
harmless  what came back is, bit by bit, what was saved as the newest step
wrong     anything else

A row of the table for each kind of mutation; the exit status is 1 where one went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.errors import UserError
from bigr_jax.train import commands, manifest
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
PAGE = 4096
OUTCOMES = ("detected", "harmless", "wrong")

# (random, a file's bytes) -> the bytes that it is damaged to
Damage = Callable[[random.Random, bytes], bytes]


class Mutation(NamedTuple):
    """What was done to which steps."""

    kind: str
    what: str
    steps: frozenset[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=500, help="how many, default 500")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations, default 0")
    parser.add_argument("--config", default=str(ROOT / "scripts" / "recorder.py"))
    parser.add_argument("--stage", default="recorder", help="of the config")
    parser.add_argument("--json", help="file for the outcomes")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        abstract, steps = trained(given.config, given.stage, folder)
        found = list(tried(steps, abstract, given.mutations, given.seed, Path(folder)))
    if given.json:
        rows = [{**m._asdict(), "steps": sorted(m.steps), "outcome": o} for m, o in found]
        files.write_json(given.json, rows)
    kinds = list(dict.fromkeys(mutation.kind for mutation, _ in found))
    print("| mutation | tried | " + " | ".join(OUTCOMES) + " |\n| --- | --- | --- | --- | --- |")
    for kind in [*sorted(kinds), "all"]:
        mine = [outcome for mutation, outcome in found if kind in (mutation.kind, "all")]
        counts = [sum(o.startswith(outcome) for o in mine) for outcome in OUTCOMES]
        print("| " + " | ".join(map(str, [kind, len(mine), *counts])) + " |")
    wrong = [f"{m.kind}, {m.what}: {o}" for m, o in found if o.startswith("wrong")]
    print("\n" + "\n".join(wrong or ["nothing wrong was restored"]))
    return int(bool(wrong))


def trained(ref: str, stage: str, folder: str) -> tuple[Any, Path]:
    """Trains a stage until three checkpoints are there; returns the shapes of its state and where
    they are.
    """
    section = f"train.{stage}."
    changes = {"duration": "12 steps", "save": "4 steps", "evaluate": "12 steps", "keep": "3"}
    config = configs.load(ref, {section + name: value for name, value in changes.items()})
    commands.train(config, f"{folder}/run", stage)
    run = Run(config, f"{folder}/run")
    return run.plan(stage).abstract, Path(folder, "run", stage, "checkpoints")


def tried(
    steps: Path, abstract: Any, count: int, seed: int, folder: Path
) -> Iterator[tuple[Mutation, str]]:
    """Yields `count` mutations of copies of a directory of checkpoints, each with its outcome."""
    rng = random.Random(seed)
    with Checkpoints(steps) as checkpoints:
        saved = {s: _bytes(checkpoints.restore(abstract, s)) for s in checkpoints.all_steps()}
    for index in range(count):
        copy = folder / f"copy{index}"
        shutil.copytree(steps, copy)
        mutation = mutate(rng, copy, list(MUTATIONS)[index % len(MUTATIONS)])
        yield mutation, outcome(copy, abstract, saved, mutation)
        shutil.rmtree(copy)


def outcome(steps: Path, abstract: Any, saved: Mapping[int, str], mutation: Mutation) -> str:
    """Returns one of OUTCOMES, the last with the reason."""
    said = _Said()
    logger = logging.getLogger("bigr_jax.train.checkpoints")
    logger.addHandler(said)
    logger.propagate, before = False, logger.propagate
    try:
        with Checkpoints(steps) as checkpoints:
            found = _bytes(checkpoints.restore(abstract))
    except UserError as error:
        # A state that is not the model's is refused, since it may be the config that is wrong.
        return "detected" if "holds another state" in str(error) else f"wrong: {error}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"
    finally:
        logger.removeHandler(said)
        logger.propagate = before
    good = max(saved.keys() - mutation.steps, default=None)
    if good is not None and found == saved[good] and said.names(steps):
        return "detected"
    if found == saved[max(saved)] and not said.lines:
        return "harmless"
    came = next((step for step, state in saved.items() if state == found), "no step that was saved")
    return f"wrong: {came} came back, and the log said {said.lines}"


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def names(self, steps: Path) -> bool:
        return any(f"checkpoint {steps}{os.sep}" in line for line in self.lines)


def _bytes(restored: tuple[Any, Any]) -> str:
    state, meta = restored
    found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def mutate(rng: random.Random, steps: Path, kind: str) -> Mutation:
    """Damages the newest checkpoint of a directory; kind is one of MUTATIONS."""
    numbers = sorted(int(path.name) for path in steps.iterdir() if path.name.isdigit())
    what, touched = MUTATIONS[kind](rng, steps, numbers)
    return Mutation(kind, what, frozenset(touched))


def _edited(damage: Damage) -> Callable[..., Any]:
    def change(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
        path = _file(rng, steps / str(numbers[-1]))
        before = path.read_bytes()
        after = before
        while after == before:
            after = damage(rng, before)
        path.write_bytes(after)
        return path.name, numbers[-1:]

    return change


def _file(rng: random.Random, step: Path) -> Path:
    """Returns a file of a step; those of every directory come as often."""
    places = sorted({path.parent for path in step.rglob("*") if path.is_file()})
    found = sorted(path for path in rng.choice(places).iterdir() if path.is_file())
    return rng.choice([path for path in found if path.stat().st_size] or found)


def _flipped(rng: random.Random, content: bytes) -> bytes:
    bad = bytearray(content)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def _longer(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice([1, 7, PAGE]))


def _zeroed(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(0, len(content), PAGE)
    page = content[start : start + PAGE]
    return content[:start] + bytes(len(page)) + content[start + len(page) :]


def _deleted(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    path = _file(rng, steps / str(numbers[-1]))
    path.unlink()
    return path.name, numbers[-1:]


def _swapped_files(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    files = sorted(path for path in (steps / str(numbers[-1])).rglob("*") if path.is_file())
    one = rng.choice(files)
    other = rng.choice([path for path in files if path.read_bytes() != one.read_bytes()])
    _exchange(one, other)
    return f"{one.name} and {other.name}", numbers[-1:]


def _from_another_step(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    newest, older = steps / str(numbers[-1]), steps / str(numbers[-2])
    shared = [path for path in older.rglob("*") if path.is_file()]
    pairs = [(path, newest / path.relative_to(older)) for path in sorted(shared)]
    one, other = rng.choice(
        [(a, b) for a, b in pairs if b.exists() and a.read_bytes() != b.read_bytes()]
    )
    _exchange(one, other)
    return one.name, numbers[-2:]


def _exchange(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def _renamed_directory(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    step, name = rng.choice(numbers), numbers[-1] + rng.randint(1, 9)
    (steps / str(step)).rename(steps / str(name))
    return f"{step} to {name}", [step]


def _swapped_directories(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    one, other = rng.sample(list(numbers), 2)
    (steps / str(one)).rename(steps / "aside")
    (steps / str(other)).rename(steps / str(one))
    (steps / "aside").rename(steps / str(other))
    return f"{one} and {other}", [one, other]


def _edited_manifest(rng: random.Random, steps: Path, numbers: Sequence[int]) -> Any:
    """As an editor would leave it, in valid JSON, with or without its own hash made right."""
    path = steps / str(numbers[-1]) / manifest.NAME
    content = json.loads(path.read_text())["content"]
    what = rng.choice(["size", "hash", "file", "leaf", "type", "step"])
    name, leaf = rng.choice(sorted(content["files"])), rng.choice(sorted(content["leaves"]))
    if what == "size":
        content["files"][name][0] += 1
    elif what == "hash":
        content["files"][name][1] = hashlib.sha256(b"another").hexdigest()
    elif what == "file":
        content["files"]["state/absent"] = content["files"][name]
    elif what == "leaf":
        del content["leaves"][leaf]
    elif what == "type":
        content["leaves"][leaf][1] = "float16"
    else:
        content["step"] = numbers[-1] + 1
    spelled = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(rng.choice([spelled, ""]).encode()).hexdigest()
    path.write_text(f'{{"content":{spelled},"sha256":"{digest}"}}\n')
    return what, numbers[-1:]


MUTATIONS: Mapping[str, Callable[..., Any]] = {
    "byte flipped": _edited(_flipped),
    "file cut": _edited(_cut),
    "page zeroed": _edited(_zeroed),
    "bytes appended": _edited(_longer),
    "file deleted": _deleted,
    "two files swapped": _swapped_files,
    "file of another step": _from_another_step,
    "directory renamed": _renamed_directory,
    "directories swapped": _swapped_directories,
    "manifest edited": _edited_manifest,
}


if __name__ == "__main__":
    sys.exit(main())
