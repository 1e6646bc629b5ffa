"""What every experiment keeps, as functions of what one types: a slug, or the path of its config.

Each raises AssertionError saying what was promised and what was found; those that need a trained
run look at what `observed` makes.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import observed
from observed import Course, named, stages

from bigr_jax import config as configs
from bigr_jax import files, registry
from bigr_jax.api import TrainState
from bigr_jax.cli import command
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run

HERE = Path(__file__).resolve().parent
RECIPE_LINES, CONFIG_LINES = 200, 80
CLOSE = 1e-5
# A gradient below this share of the largest is a sum of terms that nearly cancel: their rounding
# does not become smaller with it.
CANCELS, CLOSE_AT_MOST = 0.1, 1e-3
# A gradient so small beside the others is rounding; where that is all, none is meant to be there.
ROUNDING = 1e-6
# Patterns of the parameters that no gradient reaches, by slug; each matches one at least.
FROZEN = {
    "bigr": (
        # While no image is beyond the hinge, the slopes of real and drawn ones cancel exactly.
        "^discriminator/conv_out/bias$",
        # It moves all scores of a query alike, which a softmax does not see.
        "/middle_attention/k/bias$",
    ),
    # A norm that takes the mean over the batch takes them away.
    "biformer": (r"(^|/)down_\d/bias$", "stage_1/mlp/down/bias$"),
}


def card(ref: str) -> registry.Card:
    """Returns what the experiment of a config says of itself."""
    return registry.describe(configs.load(f"{ref}:smoke").slug)


def golden(ref: str) -> Path:
    """Returns where the shapes of the parameters are on record: beside this file, or beside a
    config of one's own.
    """
    own = ref.endswith(".py")
    return Path(ref).with_suffix(".txt") if own else HERE / f"{ref}.txt"


def check_docstring(ref: str) -> None:
    """Title with paper and year, Claim, Evidence, and a Command that reads as one of `bigr`'s."""
    found = card(ref)
    title = found.doc.partition("\n\n")[0]
    form = r"[^:]+: .*\((19|20)\d\d, .*\S\)\."
    assert re.fullmatch(form, title, re.DOTALL), f"{title!r} is not 'Name: what (year, source).'"
    for field in ("claim", "evidence"):
        text = getattr(found, field)
        assert len(text) > 20, f"{field.capitalize()} says too little: {text!r}"
    words = shlex.split(found.command)
    assert words[:1] == ["bigr"] and len(words) > 1, f"Command is not of bigr: {found.command!r}"
    try:
        chosen = importlib.import_module(f"bigr_jax.cli.{words[1]}").COMMAND
        slug = command.parse(chosen, words[2:]).config().slug
    except Exception as error:
        raise AssertionError(f"Command {found.command!r} does not parse: {error}") from error
    named = registry.describe(slug).path
    assert named == found.path, f"Command {found.command!r} is about {named}"


def check_files(ref: str) -> None:
    """An experiment fits 200 lines, its config 80 lines of code."""
    recipe, settings = card(ref).path, registry.config_path(ref)
    lines = len(Path(recipe).read_text("utf-8").splitlines())
    assert lines <= RECIPE_LINES, f"{recipe} has {lines} lines, more than {RECIPE_LINES}"
    if Path(settings).resolve() != Path(recipe).resolve():
        lines = code_lines(settings)
        assert lines <= CONFIG_LINES, f"{settings} has {lines} code lines, over {CONFIG_LINES}"


def check_variants(ref: str) -> None:
    """Every variant loads, smoke and small among them."""
    variants = registry.run_file(registry.config_path(ref)).VARIANTS
    assert {"smoke", "small"} <= set(variants), f"smoke and small are wanted, found {variants}"
    for variant in variants:
        found = configs.load(f"{ref}:{variant}").variant
        assert found == variant, f"{ref}:{variant} calls itself {found!r}"


def check_shapes(ref: str) -> None:
    """The parameters are those on record; BIGR_REGENERATE=1 records them anew."""
    found, path = described(observed.of(ref).run), golden(ref)
    if os.environ.get("BIGR_REGENERATE") == "1":
        path.write_text(found, "utf-8")
    assert path.exists(), f"{path} is missing; BIGR_REGENERATE=1 writes it"
    wanted = path.read_text("utf-8")
    changed = sorted(set(found.splitlines()) ^ set(wanted.splitlines()))
    assert found == wanted, f"parameters differ from {path.name} in: {changed}"


def check_learning(ref: str) -> None:
    """Losses are finite and fall, on the batches seen and, where measured, on the test split."""
    for name, stage in stages(ref).items():
        losses, later = stage.straight.losses, stage.later
        assert all(map(math.isfinite, losses)), f"{name}: the losses are not finite: {losses}"
        before, after = np.mean(losses[: observed.COMPARED]), np.mean(later)
        assert after < before, f"{name}: the loss rises from {before:.6g} to {after:.6g}"
        first, last = stage.tested
        assert all(map(math.isfinite, last.values())), f"{name}: test metrics {last}"
        if "loss" in last:
            rise = f"{name}: the test loss rises from {first['loss']:.6g} to {last['loss']:.6g}"
            assert last["loss"] < first["loss"], rise


def check_gradients(ref: str) -> None:
    """A gradient reaches every parameter that FROZEN does not name."""
    found = {path for stage in stages(ref).values() for path in unreached(stage.straight)}
    declared = {pattern: {p for p in found if re.search(pattern, p)} for pattern in _frozen(ref)}
    stray = sorted(found.difference(*declared.values()))
    assert not stray, f"no gradient reaches {stray}; those meant to stay are named in FROZEN"
    for pattern, paths in declared.items():
        assert paths, f"FROZEN names {pattern!r}, but a gradient reaches all parameters"


def check_one_program(ref: str) -> None:
    """The state that a step returns is of the types that it takes: the next step is no other
    program.
    """
    for name, (took, gave) in observed.of(ref).types.items():
        changed = [
            f"{path}: {took.get(path, 'nothing')} taken, {gave.get(path, 'nothing')} returned"
            for path in took.keys() | gave.keys()
            if took.get(path) != gave.get(path)
        ]
        assert not changed, f"{name}: the second step would be compiled anew; {'; '.join(changed)}"


def check_same_bits(ref: str) -> None:
    """The same seed gives the same bits, also by files that are loaded anew."""
    for name, stage in stages(ref).items():
        for what in ("start", "end"):
            one, other = getattr(stage.straight, what), getattr(stage.again, what)
            paths = differing(one, other)
            assert not paths, f"{name}: with one seed, the {what} differs in {paths[:5]}"
        assert stage.straight.losses == stage.again.losses, name


def check_resuming(ref: str) -> None:
    """A run that was stopped and taken up by a new one ends in the bits of one that was not."""
    for name, stage in stages(ref).items():
        paths = differing(stage.straight.end, stage.resumed.end)
        assert not paths, (
            f"{name}: stopped after step {observed.STOP} and resumed, it differs in {paths[:5]}"
        )
        assert stage.straight.losses == stage.resumed.losses, f"{name}: losses differ"


def check_devices(ref: str) -> None:
    """One batch on two devices gives the losses, the parameters and the optimizer's moments that it
    gives on one.
    """
    found, second = stages(ref), observed.of(ref).second
    failure, frozen = second.failure("devices"), _frozen(ref)
    assert not failure, failure
    with np.load(second.folder / "devices.npz") as two:
        for name, stage in found.items():
            shares = gradient_shares(stage.sharded)
            for path, one in observed.compared(name, stage.sharded).items():
                # What moves by rounding alone moves differently.
                if any(re.search(pattern, path) for pattern in frozen):
                    continue
                share = min((s for end, s in shares.items() if path.endswith(f"/{end}")), default=1)
                error = np.abs(one - two[path]).max() / max(np.abs(one).max(), 1e-30)
                limit = min(CLOSE * max(1, CANCELS / max(share, ROUNDING)), CLOSE_AT_MOST)
                assert error <= limit, f"on two devices {path} differs by {error:.2g} of its scale"


def check_sampling(ref: str) -> None:
    """Images drawn are in [0, 1], and depend on the key alone."""
    assert stages(ref)
    run = observed.of(ref).run
    data = run.config.data
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
        shape = (len(labels), data.size, data.size, data.channels)
        assert first.shape == shape, f"{name}: images {first.shape}, expected {shape}"
        low, high = first.min(), first.max()
        assert 0 <= low < high <= 1, f"{name}: pixels from {low} to {high}, not in [0, 1]"
        assert first.tobytes() == same.tobytes(), f"{name}: one key draws different images"
        assert first.tobytes() != other.tobytes(), f"{name}: another key draws the same images"


def check_study(ref: str) -> None:
    """The study states claims, each with its numbers, and records what is finite."""
    assert stages(ref)
    second = observed.of(ref).second
    failure = second.failure("study")
    assert not failure, failure
    written = files.read_json(second.folder / "results" / f"{card(ref).slug}.json")
    assert written["claims"], "the study states no claim"
    for claim in written["claims"]:
        assert claim["text"] and isinstance(claim["holds"], bool), claim
        numbers = {name: claim[name] for name in ("value", "spread", "against")}
        bad = [name for name, number in numbers.items() if not _finite(number)]
        assert not bad, f"the claim {claim['text']!r} has no finite {bad}: {numbers}"
    assert written["records"], "the study records nothing"
    for record in written["records"]:
        assert _finite(record["value"]), f"a record is not finite: {record}"


CHECKS: dict[str, Callable[[str], None]] = {
    "docstring": check_docstring,
    "files": check_files,
    "variants": check_variants,
    "shapes": check_shapes,
    "learning": check_learning,
    "gradients": check_gradients,
    "one_program": check_one_program,
    "same_bits": check_same_bits,
    "resuming": check_resuming,
    "sampling": check_sampling,
    # Last: by then the second process is done, or nearly.
    "devices": check_devices,
    "study": check_study,
}


def described(run: Run) -> str:
    """Returns a line per variable of every stage: path, type, and its axes' names."""
    lines = []
    for name in run.methods:
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            run.boxed(name), is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
        )
        for path, box in leaves:
            leaf, axes = nn.meta.unbox(box), getattr(box, "names", None)
            shape = ",".join(map(str, leaf.shape))
            named = "" if axes is None else f" ({', '.join(str(axis or '-') for axis in axes)})"
            lines.append(f"{name} {sharding.path_name(path)} {leaf.dtype}[{shape}]{named}")
    return "\n".join(lines) + "\n"


def unreached(course: Course) -> list[str]:
    """Returns the paths of the parameters that have not moved, or whose moments are all zero.

    Zero is what is rounding beside the largest of its kind. Weight decay alone moves a parameter
    too; an optimizer that keeps no moments leaves only that to look at.
    """
    after = named(course.end.variables["params"])
    before, shares = named(course.start.variables["params"]), gradient_shares(course)
    return [
        path
        for path in before
        if np.all(after[path] == before[path]) or shares.get(path, 1) <= ROUNDING
    ]


def gradient_shares(course: Course) -> dict[str, float]:
    """Returns {path: share} of the parameters of which the optimizer keeps moments: the largest of
    these beside the largest of their kind.
    """
    before, opt_state = named(course.start.variables["params"]), named(course.end.opt_state)
    moments: dict[str, dict[str, float]] = {}
    for path in before:
        for place, leaf in opt_state.items():
            if f"/{place}".endswith(f"/{path}") and leaf.shape == before[path].shape:
                kind = place.removesuffix(path)
                moments.setdefault(kind, {})[path] = float(np.abs(leaf).max())
    shares: dict[str, float] = {}
    for sizes in moments.values():
        for path, size in sizes.items():
            shares[path] = max(shares.get(path, 0.0), size / (max(sizes.values()) or 1))
    return shares


def differing(one: TrainState, other: TrainState) -> list[str]:
    """Returns the paths of the leaves whose bits differ."""
    mine, theirs = named(one), named(other)
    assert mine.keys() == theirs.keys()
    return [path for path, leaf in mine.items() if leaf.tobytes() != theirs[path].tobytes()]


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


def _frozen(ref: str) -> tuple[str, ...]:
    return FROZEN.get(card(ref).slug, ())


def _finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
