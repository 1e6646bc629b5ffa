"""Three figures of training: from stored codes, what the loop adds to a step, and remat.

    python benchmarks/training.py [--parts=cached,loop,remat] [--narrow=8] [--batch=4] [--steps=20]
                                  [--repeats=7] [--memory=64] [--variant=paper] [--looped=small]
                                  [--large=paper_xl] [--set=KEY=VALUE ...]

cached  a step of BiGR-L on stored codes, against one through the tokenizer; both narrowed, so that
        each keeps its share of the work (`scaled`), and then changed by --set: the smaller the
        generator, the more is saved. On the same codes both must give the same loss, or nothing is
        timed and the exit status is 1.
loop    a step inside `train.loop.fit`, logging included, against the compiled step alone.
remat   BiGR-XL with the three settings of `model.remat`: the memory that the compiled step asks for
        beyond its arguments, at full width and a batch of --memory (nothing is run), and the time
        of a step of the narrowed model.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scaled
from timing import HEADER, Taken, compared, interleaved, positive, ratio, repeated, table

from bigr_jax import config as configs
from bigr_jax.api import TrainState
from bigr_jax.cli.command import prepare
from bigr_jax.ops import flops
from bigr_jax.ops.packing import pack_bits
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.loop import Program, compile_step, device_batches, fit, scope
from bigr_jax.train.run import Run
from bigr_jax.train.step import make_step
from bigr_jax.train.writer import Metrics

REMAT = ("none", "dots", "full")

Array = jax.Array


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts that are asked for; returns the exit status."""
    given = arguments(argv)
    # As `bigr` does: memory that is freed stays in the process.
    prepare()
    return max(PARTS[name](given) for name in given.parts)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=parts, default=tuple(PARTS), help="default all three")
    for name, default, text in (
        ("narrow", 8, "divides the widths of what is run"),
        ("batch", 4, "images of a step that is run"),
        ("steps", 20, "steps of the loop in a turn"),
        ("repeats", 7, "of every timing"),
        ("memory", 64, "images of a step whose memory is told"),
    ):
        text = f"{text}; default {default}"
        parser.add_argument(f"--{name}", type=positive, default=default, help=text)
    scaled.add_settings(parser)
    parser.add_argument("--variant", default="paper", help="of the config for the part cached")
    parser.add_argument("--looped", default="small", help="of the config for the part loop")
    parser.add_argument("--large", default="paper_xl", help="of the config for the part remat")
    return parser.parse_args(argv)


def parts(text: str) -> tuple[str, ...]:
    """Reads "cached,remat"; what is no part is refused by argparse."""
    names = tuple(text.split(","))
    if set(names) - set(PARTS):
        raise ValueError(text)
    return names


def cached(given: argparse.Namespace) -> int:
    """Compares a step on stored codes with one through the tokenizer."""
    settings = scaled.settings(given)
    model = scaled.generator(scaled.scaled(given.variant, given.narrow, settings))
    tokenizer = {"tokenizer": scaled.noise(scaled.tokenizer_shapes(model))}
    step, state = training(model)
    state = started(state)
    batch, key = images(model, given.batch), jax.random.key(0)
    # The codes that the step through the tokenizer draws with this key.
    drawn = jax.random.split(jax.random.fold_in(key, 0), 5)
    codes = jax.jit(model.codes)(batch, tokenizer, drawn[0], drawn[2])
    stored = {"codes": pack_bits(codes), "label": batch["label"]}
    forms = {"through the tokenizer": (batch, tokenizer), "stored codes": (stored, {})}
    print(f"cached: bigr:{given.variant}, widths divided by {given.narrow}, batch {given.batch}")
    losses = [float(step(state, x, key, rest)[1]["loss"]) for x, rest in forms.values()]
    if abs(losses[0] - losses[1]) > 1e-5 * abs(losses[1]):
        print(f"UNEQUAL: losses {losses[0]} and {losses[1]} on the same codes")
        return 1
    print(f"equal: the same loss, {losses[0]:.6f}, on the same codes\n")
    turns = {name: repeated(step, state, x, key, rest) for name, (x, rest) in forms.items()}
    taken = interleaved(turns, given.repeats)
    print(table(HEADER, compared(taken, "through the tokenizer")))
    print("\nshare of the work that the tokenizer does, by products and convolutions:")
    rows = []
    for narrow in sorted({1, given.narrow}):
        through, alone = work(scaled.generator(scaled.scaled(given.variant, narrow, settings)))
        name, ratios = f"divided by {narrow}", f"{through / alone:.2f}"
        rows.append([name, f"{through:.3g}", f"{alone:.3g}", f"{1 - alone / through:.2f}", ratios])
    print(table(["widths", "FLOPs through it", "without it", "its share", "ratio"], rows) + "\n")
    return 0


def work(model: CodeGenerator) -> tuple[int, int]:
    """Returns the FLOPs of a step for one image, through the tokenizer and from stored codes."""
    batch = jax.eval_shape(lambda: images(model, 1))
    stored = jax.eval_shape(lambda: codes(model, 1))
    variables, tokenizer = scaled.shapes(model), scaled.tokenizer_shapes(model)

    def count(batch: Any) -> int:
        def gradient(variables: Any, tokenizer: Any, batch: Any) -> Any:
            lost = functools.partial(model.loss, key=jax.random.key(0), batch=batch)
            return jax.grad(lambda v: lost(v, given={"tokenizer": tokenizer})[0])(variables)

        return flops.count(jax.make_jaxpr(gradient)(variables, tokenizer, batch))

    return count(batch), count(stored)


def images(model: CodeGenerator, count: int) -> dict[str, Array]:
    """Returns a batch of noise: what an image shows does not change what it costs."""
    net, rng = model.tokenizer, np.random.default_rng(0)
    shape = (count, net.image_size, net.image_size, net.channels)
    return {
        "image": jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
        "label": jnp.asarray(rng.integers(0, model.net.num_classes, count), jnp.int32),
    }


def training(model: CodeGenerator) -> tuple[Any, TrainState]:
    """Returns a step of AdamW, and the shapes of the state that it takes."""
    tx, variables = optax.adamw(1e-4, 0.9, 0.95), scaled.shapes(model)
    moments = jax.eval_shape(tx.init, variables["params"])
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), variables, moments, None)
    return jax.jit(make_step(model.method(), tx, lambda step: jnp.asarray(1e-4))), state


def started(state: TrainState) -> TrainState:
    """Returns a state of these shapes: random variables, nothing remembered."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return zeros._replace(variables=scaled.noise(state.variables))


def loop(given: argparse.Namespace) -> int:
    """Compares a step inside the training loop with the compiled step alone."""
    config = configs.load(f"bigr:{given.looped}")
    with tempfile.TemporaryDirectory() as workdir:
        run = Run(config, workdir)
        model: Any = run.methods["generator"].model
        rest = {name: given_variables(run, name) for name in run.methods["generator"].needs}
        plan = run.plan("generator")
        # What comes after the last step is not of the loop.
        quiet = plan.method._replace(evaluate=lambda *inputs: {})
        plan = plan._replace(method=quiet, total=given.steps, eval_every=0, save_every=0)
        source = run.sources["train"]
        host = {name: np.asarray(value) for name, value in first(source, plan.batch_size).items()}
        root = jax.device_put(jax.random.key(0))
        with scope(run.mesh):
            batch = next(device_batches(iter([host]), run.mesh))
            state = plan.create(rest)
            program = compile_step(plan, state, batch, root, rest)
            taken = alternated(run, plan, program, batch, root, rest, given.repeats)
    print(f"loop: bigr:{config.variant}, {model.net.width} wide, batch {plan.batch_size}")
    print(f"{given.steps} steps a turn, logged every {plan.log_every}, median of {given.repeats}\n")
    print(table(HEADER, compared(taken, "in the loop")))
    found = ratio(taken["in the loop"], taken["the step alone"])
    print(f"\nthe loop takes {found} times as long as its steps\n")
    return 0


def first(source: Any, size: int) -> dict[str, np.ndarray]:
    """Returns a batch as the trainer's, of the first examples."""
    index = np.arange(size)
    rows = {"index": index.astype(np.int32), "mask": np.ones(size, np.float32)}
    return {**source.gather(index), **rows}


def given_variables(run: Run, name: str) -> Any:
    """Returns random variables of an earlier stage, placed as they would be."""
    abstract = run.plan(name).abstract.variables
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.device_put(scaled.noise(abstract), placed)


def alternated(
    run: Run, plan: Any, program: Program, batch: Any, root: Array, rest: Any, repeats: int
) -> dict[str, Taken]:
    """Returns seconds per step of both forms; the turns alternate."""
    taken = {"in the loop": Taken([], []), "the step alone": Taken([], [])}

    def note(name: str, marks: list[tuple[float, float]]) -> None:
        steps = len(marks) - 1
        taken[name].seconds.append((marks[-1][0] - marks[0][0]) / steps)
        taken[name].cores.append((marks[-1][1] - marks[0][1]) / steps)

    def alone() -> None:
        state = plan.create(rest)
        state, _ = program.step(state, batch, root, rest)
        jax.block_until_ready(state)
        marks = [now()]
        for _ in range(plan.total - 2):
            state, metrics = program.step(state, batch, root, rest)
        jax.block_until_ready((state, metrics))
        note("the step alone", [marks[0], *[now()] * (plan.total - 2)])

    def inside(turn: int) -> None:
        marks: list[tuple[float, float]] = []

        def marked_step(state: Any, *inputs: Any) -> Any:
            # The device has nothing left to do when the first and the last mark are made.
            if len(marks) == 1 or len(marks) == plan.total - 1:
                jax.block_until_ready(state)
            marks.append(now())
            return program.step(state, *inputs)

        marked: Any = marked_step
        with tempfile.TemporaryDirectory() as folder:
            metrics = Metrics(folder, tensorboard=False, wandb=False)
            with metrics, Checkpoints(f"{folder}/checkpoints", keep=1) as checkpoints:
                how = (run.mesh, run.sources, rest, checkpoints, metrics, folder)
                fit(plan, *how, program=program._replace(step=marked))
        note("in the loop", marks[1:])

    for turn in range(-1, repeats):
        for form in (alone, functools.partial(inside, turn))[:: -1 if turn % 2 else 1]:
            form()
        if turn < 0:
            taken = {name: Taken([], []) for name in taken}
    return taken


def now() -> tuple[float, float]:
    """Returns the wall clock and the seconds of all cores so far."""
    return time.perf_counter(), time.process_time()


def remat(given: argparse.Namespace) -> int:
    """Tells memory and time of the settings of remat."""
    steps, norms = {}, {}
    print(f"remat: bigr:{given.large}; memory at a batch of {given.memory}, ", end="")
    print(f"time with widths divided by {given.narrow} and a batch of {given.batch}")
    for name in REMAT:
        step, state, batch = compiled(given.large, given.narrow, name, given.batch)
        state, batch = started(state), jax.tree.map(jnp.ones_like, batch)
        steps[name] = repeated(step, state, batch, jax.random.key(0), {})
        norms[name] = float(steps[name](0)[1]["grad_norm"])
    if max(norms.values()) - min(norms.values()) > 1e-3 * norms["none"]:
        print(f"UNEQUAL: norms of the gradient {norms}")
        return 1
    print(f"equal: the same norm of the gradient, {norms['none']:.6g}\n")
    taken = interleaved(steps, given.repeats)
    memory = {}
    for name in REMAT:
        step, *_ = compiled(given.large, 1, name, given.memory)
        memory[name] = step.memory_analysis().temp_size_in_bytes
    rows = [
        [
            name,
            f"{memory[name] / 2**30:.3g}",
            f"{memory[name] / memory['none']:.3f}",
            f"{taken[name].median:.3g}",
            str(ratio(taken[name], taken["none"])),
            f"{ratio(taken[name], taken['none'], cores=True).median:.2f}",
        ]
        for name in REMAT
    ]
    header = ["remat", "GiB", "of none", "seconds", "times as long", "by work of cores"]
    print(table(header, rows) + "\n")
    return 0


def codes(model: CodeGenerator, count: int) -> dict[str, Array]:
    """Returns a batch of stored codes, of noise."""
    rng, net = np.random.default_rng(0), model.net
    packed = rng.integers(0, 256, (count, net.length * net.bits // 8), np.uint8)
    return {"codes": jnp.asarray(packed), "label": jnp.zeros(count, jnp.int32)}


@functools.cache
def compiled(variant: str, narrow: int, remat: str, batch: int) -> tuple[Any, Any, Any]:
    """Returns a compiled step on stored codes, and the shapes of its state and batch."""
    model = scaled.generator(scaled.scaled(variant, narrow, {"model.remat": remat}))
    step, state = training(model)
    shapes = jax.eval_shape(lambda: codes(model, batch))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, shapes, key, {}).compile(), state, shapes


PARTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "cached": cached,
    "loop": loop,
    "remat": remat,
}

if __name__ == "__main__":
    sys.exit(main())
