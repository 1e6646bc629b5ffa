"""What every experiment keeps: its promises are typed, its files are short, its smoke run learns.

The shapes of an experiment's parameters are in SLUG.txt beside this file; after a change that is
meant, BIGR_REGENERATE=1 python -m pytest tests/contract writes them anew.
"""

from __future__ import annotations

import ast
import importlib
import io
import math
import os
import re
import shlex
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.api import TrainState
from bigr_jax.cli import command
from bigr_jax.data import train_batches
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run
from bigr_jax.train.state import eval_variables
from bigr_jax.train.status import Status

SLUGS = registry.names()
STEPS, COMPARED = 20, 5
# Patterns of the parameters that no gradient reaches, by slug; each matches one at least.
UNTRAINED = {
    # While no image is beyond the hinge, the slopes of real and drawn ones cancel exactly.
    "bigr": ("^discriminator/conv_out/bias$",),
}


def code_lines(path: str) -> int:
    """Returns the number of lines that hold code: no docstring, comment or blank line."""
    text = Path(path).read_text("utf-8")
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*silent, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_docstring_names_the_paper_and_a_command_that_works(slug: str) -> None:
    card = registry.describe(slug)
    title = card.doc.partition("\n\n")[0]
    assert re.fullmatch(r"[^:]+: .*\((19|20)\d\d, .*\S\)\.", title, re.DOTALL)
    assert min(len(card.claim), len(card.evidence)) > 20
    program, name, *words = shlex.split(card.command)
    chosen = importlib.import_module(f"bigr_jax.cli.{name}").COMMAND
    assert (program, chosen.name) == ("bigr", name)
    assert command.parse(chosen, words).config().slug == slug


@pytest.mark.parametrize("slug", SLUGS)
def test_files_are_short(slug: str) -> None:
    assert len(Path(registry.describe(slug).path).read_text("utf-8").splitlines()) <= 200
    assert code_lines(registry.config_path(slug)) <= 80


@pytest.mark.parametrize("slug", SLUGS)
def test_every_variant_loads_and_two_are_everywhere(slug: str) -> None:
    variants = registry.run_file(registry.config_path(slug)).VARIANTS
    assert {"smoke", "small"} <= set(variants)
    for variant in variants:
        assert configs.load(f"{slug}:{variant}").variant == variant


class Stage(NamedTuple):
    """A stage before and after its smoke run, twice, and the losses of its steps.

    later  losses of the first batches, with their keys, after the run
    """

    start: TrainState
    end: TrainState
    again: TrainState
    losses: list[float]
    later: list[float]


class Trained(NamedTuple):
    """The smoke run of an experiment, and its stages after it."""

    run: Run
    stages: dict[str, Stage]


def trained_stage(run: Run, name: str) -> Stage:
    plan, _ = run._plans[name]
    given, where = run.given(name), jax.tree.map(lambda leaf: leaf.sharding, plan.abstract)
    root = jax.device_put(jax.random.key(plan.seed), sharding.replicated(run.mesh))
    host = train_batches(run.sources["train"], plan.batch_size, plan.seed)
    batches = [next(host) for _ in range(STEPS)]
    host.close()
    with loop.scope(run.mesh):
        placed = list(loop.device_batches(iter(batches), run.mesh))
        status = Status(name, plan.total, stream=io.StringIO())
        step, _ = loop._compile(plan, plan.create(), placed[0], root, given, status)

        def course() -> tuple[TrainState, TrainState, list[float]]:
            state, losses = plan.create(), []
            start = jax.device_get(state)
            for batch in placed:
                state, metrics = step(state, batch, root, given)
                losses.append(float(metrics["loss"]))
            return start, state, losses

        start, end, losses = course()
        kept = jax.device_get(end)
        run._variables[name] = jax.tree.map(jax.numpy.copy, eval_variables(end))
        _, again, _ = course()
        # The same batches and keys for other parameters; the steps that this takes are thrown away.
        later = []
        for number, batch in enumerate(placed[:COMPARED]):
            state = jax.device_put(kept._replace(step=np.int32(number)), where)
            later.append(float(step(state, batch, root, given)[1]["loss"]))
    return Stage(start, kept, jax.device_get(again), losses, later)


@pytest.fixture(scope="module", params=SLUGS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = configs.load(f"{request.param}:smoke")
    run = Run(config, str(tmp_path_factory.mktemp(request.param)))
    return Trained(run, {name: trained_stage(run, name) for name in run.methods})


def described(run: Run) -> str:
    """Returns a line per variable of every stage: path, type, and its axes' names."""
    lines = []
    for name, (_, boxed) in run._plans.items():
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
        )
        for path, box in leaves:
            leaf, axes = nn.meta.unbox(box), getattr(box, "names", None)
            shape = ",".join(map(str, leaf.shape))
            named = "" if axes is None else f" ({', '.join(str(axis or '-') for axis in axes)})"
            lines.append(f"{name} {sharding.path_name(path)} {leaf.dtype}[{shape}]{named}")
    return "\n".join(lines) + "\n"


def test_parameters_are_those_on_record(trained: Trained) -> None:
    path = Path(__file__).with_name(f"{trained.run.config.slug}.txt")
    if os.environ.get("BIGR_REGENERATE") == "1":
        path.write_text(described(trained.run), "utf-8")
    assert described(trained.run) == path.read_text("utf-8")


def test_every_stage_learns(trained: Trained) -> None:
    for name, stage in trained.stages.items():
        assert all(map(math.isfinite, stage.losses)), name
        assert np.mean(stage.later) < np.mean(stage.losses[:COMPARED]), name


def test_every_parameter_is_reached_by_a_gradient(trained: Trained) -> None:
    untrained = UNTRAINED.get(trained.run.config.slug, ())
    found = {path for stage in trained.stages.values() for path in unreached(stage)}
    matches = {pattern: {p for p in found if re.search(pattern, p)} for pattern in untrained}
    assert found == set().union(*matches.values())
    assert all(matches.values())


def unreached(stage: Stage) -> list[str]:
    """Returns the paths of the parameters that have not moved, or whose moments are all zero.

    Weight decay alone moves a parameter too; an optimizer that keeps no moments leaves only that to
    look at.
    """

    def named(tree: Any) -> list[tuple[str, np.ndarray]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return [(sharding.path_name(path), np.asarray(leaf)) for path, leaf in leaves]

    before, moments = dict(named(stage.start.variables["params"])), named(stage.end.opt_state)
    found = []
    for path, leaf in named(stage.end.variables["params"]):
        mine = [m for place, m in moments if f"/{place}".endswith(f"/{path}")]
        mine = [m for m in mine if m.shape == leaf.shape]
        if np.all(leaf == before[path]) or (mine and not any(map(np.any, mine))):
            found.append(path)
    return found


def test_the_same_seed_gives_the_same_bits(trained: Trained) -> None:
    for name, stage in trained.stages.items():
        pairs = zip(jax.tree.leaves(stage.end), jax.tree.leaves(stage.again), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs), name


def test_drawing_depends_on_the_key_alone(trained: Trained) -> None:
    run, data = trained.run, trained.run.config.data
    labels = np.repeat(np.arange(data.num_classes), 2)
    for name, method in run.methods.items():
        if method.sample is None:
            continue

        def drawn(seed: int, name: str = name, sample: Any = method.sample) -> np.ndarray:
            variables, given = run.variables(name), run.given(name)
            key = jax.random.key(seed)
            return sample_in_batches(sample, variables, key, labels, given, len(labels))

        with loop.scope(run.mesh):
            first, same, other = drawn(0), drawn(0), drawn(1)
        assert first.shape == (len(labels), data.size, data.size, data.channels)
        assert 0 <= first.min() < first.max() <= 1
        assert first.tobytes() == same.tobytes()
        assert first.tobytes() != other.tobytes()
