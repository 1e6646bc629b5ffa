"""What surviving costs: a checkpoint every step, its manifest, and the guard in the step.

    python benchmarks/resilience.py [--parts=guard,checkpoint,manifest] [--width=1024] [--depth=8]
                                    [--rows=4096] [--steps=4] [--repeats=5]

A stack of square layers with AdamW and an average: --depth x --width^2 parameters, four times as
many numbers in the state, and --rows rows of a batch, each of which costs what a token of a
transformer of that size costs.

guard       the step of `train.step`, which looks whether all is finite and keeps the state where it
            is not, against one that does not look. Both must give the same loss and norm.
checkpoint  steps with a checkpoint after each, as the trainer makes it, against steps with none.
            Saving goes on while the next step runs; the time of a turn ends with its last step, the
            work of the cores with its last save.
manifest    a save, waited for, against one whose manifest holds no hashes.

Where the processor computes and saves alike, saving takes cores from computing; an accelerator's
host has them idle. XLA_FLAGS=--xla_cpu_multi_thread_eigen=false leaves all cores but one to saving.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import HEADER, Taken, compared, positive, ratio, table

from bigr_jax.api import Aux, Method, TrainState
from bigr_jax.train import ema, manifest
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.step import Step, all_finite, make_step

RATE, DECAY = 1e-4, 0.99

Array = jax.Array


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts that are asked for; returns the exit status."""
    given = arguments(argv)
    return max(PARTS[name](given) for name in given.parts)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=parts, default=tuple(PARTS), help="default all three")
    for name, default, text in (
        ("width", 1024, "of the layers"),
        ("depth", 8, "layers"),
        ("rows", 4096, "of a batch"),
        ("steps", 4, "in a turn of the part checkpoint"),
        ("repeats", 5, "turns of every form"),
    ):
        text = f"{text}; default {default}"
        parser.add_argument(f"--{name}", type=positive, default=default, help=text)
    return parser.parse_args(argv)


def parts(text: str) -> tuple[str, ...]:
    """Reads "guard,manifest"; what is no part is refused by argparse."""
    names = tuple(text.split(","))
    if set(names) - set(PARTS):
        raise ValueError(text)
    return names


TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE))


def loss(variables: Any, key: Array, batch: Any, given: Any) -> tuple[Array, Aux]:
    """The mean square of what the layers make of a batch."""

    def layer(x: Array, kernel: Array) -> tuple[Array, None]:
        return x + jax.nn.gelu(x @ kernel), None

    x, _ = jax.lax.scan(layer, batch["x"], variables["params"]["kernel"])
    return jnp.mean(x**2), Aux({})


def guarded() -> Step:
    """Returns the trainer's step."""
    method = Method(lambda *_: {}, loss, lambda *_: {})
    return make_step(method, TX, lambda step: jnp.float32(RATE), ema=DECAY)


def plain(state: TrainState, batch: Any, root: Array, given: Any) -> tuple[TrainState, Any]:
    """The same step, which trusts its numbers."""
    key, params = jax.random.fold_in(root, state.step), state.variables["params"]
    take = jax.value_and_grad(lambda p: loss({"params": p}, key, batch, given)[0])
    value, grads = take(params)
    updates, opt_state = TX.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    average = ema.update(state.ema, {"params": params}, DECAY, state.step)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "lr": jnp.float32(RATE)}
    return TrainState(state.step + 1, {"params": params}, opt_state, average), metrics


def started(given: argparse.Namespace) -> TrainState:
    """Returns a fresh state."""
    shape = (given.depth, given.width, given.width)
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32) / given.width
    params = {"kernel": jnp.asarray(kernel)}
    average = {"params": jax.tree.map(jnp.copy, params)}
    return TrainState(jnp.zeros((), jnp.int32), {"params": params}, TX.init(params), average)


def compiled(step: Step, given: argparse.Namespace) -> Callable[[TrainState], Any]:
    """Returns (state) -> (state, metrics), compiled; the state is donated."""
    rows = np.random.default_rng(1).normal(size=(given.rows, given.width)).astype(np.float32)
    inputs = {"x": jnp.asarray(rows)}, jax.random.key(0), dict[str, Any]()
    program = jax.jit(step, donate_argnums=0).lower(started(given), *inputs).compile()
    return lambda state: program(state, *inputs)


def described(name: str, given: argparse.Namespace) -> str:
    """Returns what is timed."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(started(given))) / 1e6
    return f"{name}: {size:.0f} MB of state, {given.rows} rows, median of {given.repeats}"


def turns(
    forms: dict[str, Callable[[], Any]], repeats: int, settle: Callable[[], Any]
) -> dict[str, Taken]:
    """Returns what the forms took, in alternating order and after one turn that does not count.

    settle  called after each, in no one's time; the cores' work in it counts
    """
    taken = {name: Taken([], []) for name in forms}
    for turn in range(-1, repeats):
        for name in list(forms)[:: -1 if turn % 2 else 1]:
            begin, work = time.perf_counter(), time.process_time()
            jax.block_until_ready(forms[name]())
            seconds = time.perf_counter() - begin
            settle()
            if turn >= 0:
                taken[name].seconds.append(seconds)
                taken[name].cores.append(time.process_time() - work)
    return taken


def guard(given: argparse.Namespace) -> int:
    """Compares the step with one that does not look."""
    programs = {"plain": compiled(plain, given), "guarded": compiled(guarded(), given)}
    print(described("guard", given))
    states, found = {}, {}
    for name, program in programs.items():
        states[name], metrics = program(started(given))
        found[name] = float(metrics["loss"]), float(metrics["grad_norm"])
    if not np.allclose(found["plain"], found["guarded"], rtol=1e-6):
        print(f"UNEQUAL: loss and norm of the gradient {found}")
        return 1
    print(
        f"equal: loss and norm of the gradient {found['plain'][0]:.6g}, {found['plain'][1]:.6g}\n"
    )

    def form(name: str) -> Callable[[], Any]:
        def run() -> Any:
            states[name], metrics = programs[name](states[name])
            return metrics, states[name]

        return run

    taken = turns({name: form(name) for name in programs}, given.repeats, lambda: None)
    print(table(HEADER, compared(taken, "plain")))
    return told(taken, "guarded", "plain")


def told(taken: dict[str, Taken], slow: str, fast: str) -> int:
    """Prints by how much one form is slower; returns the exit status."""
    work = ratio(taken[slow], taken[fast], cores=True)
    print(
        f"\n{slow} takes {ratio(taken[slow], taken[fast])} times as long, and {work} of the work\n"
    )
    return 0


def checkpoint(given: argparse.Namespace) -> int:
    """Compares steps that are saved with steps that are not."""
    program, state = compiled(guarded(), given), started(given)
    print(described("checkpoint", given) + f", {given.steps} steps a turn")
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=2) as checkpoints:
        held, finite = [state], jax.jit(all_finite)

        def run(save: bool) -> Any:
            for _ in range(given.steps):
                held[0], metrics = program(held[0])
                if save and finite((held[0].variables, held[0].ema)):
                    step = int(held[0].step)
                    checkpoints.save(step, held[0], {"step": step})
            return metrics, held[0]

        forms = {"none": lambda: run(False), "every step": lambda: run(True)}
        taken = turns(forms, given.repeats, checkpoints.wait)
    alone = taken["none"]
    busy = sum(alone.cores) / sum(alone.seconds)
    print(f"a step takes {alone.median / given.steps:.3g} s on {busy:.1f} cores\n")
    print(table(HEADER, compared(taken, "none", given.steps)))
    return told(taken, "every step", "none")


def hashes(given: argparse.Namespace) -> int:
    """Compares saves with a manifest and with one that holds no hashes."""
    state = started(given)
    print(described("manifest", given))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=2) as checkpoints:
        held = [0]

        def run() -> None:
            held[0] += 1
            checkpoints.save(held[0], state, {})
            checkpoints.wait()

        def bare() -> None:
            with unhashed():
                run()

        forms = {"without": bare, "with the manifest": run}
        # What was written is on the disk before the next begins.
        taken = turns(forms, given.repeats, os.sync)
    print(table(HEADER, compared(taken, "without")))
    return told(taken, "with the manifest", "without")


@contextlib.contextmanager
def unhashed() -> Iterator[None]:
    """Has manifests written that say nothing of what the files hold."""
    digest = manifest._digest
    manifest._digest = lambda path, begin, end: ""
    try:
        yield
    finally:
        manifest._digest = digest


PARTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "guard": guard,
    "checkpoint": checkpoint,
    "manifest": hashes,
}

if __name__ == "__main__":
    sys.exit(main())
