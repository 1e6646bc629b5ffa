"""Seconds per image of BiGR's sampler, against the plain way of writing it.

    python benchmarks/bigr.py [--variant=small] [--narrow=1] [--set=KEY=VALUE ...] [--images=16]
                              [--repeats=3] [--orders=entropy,random,raster] [--workdir=DIR]
    python benchmarks/bigr.py --variant=paper --narrow=4 --images=2   # BiGR-L, a quarter as wide

The sampler (`generate.masked.sample_masked`) is one compiled program, in which the transcoder runs
on the tokens that still need it. The plain form is a loop in Python over iterations and denoising
steps, each piece compiled on its own, the transcoder on all tokens every time. Both are given the
same random numbers and must give the same bits, or nothing is timed and the exit status is 1.

Weights are random unless --workdir names a finished run.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scaled
from timing import HEADER, compared, interleaved, positive, table

from bigr_jax import config as configs
from bigr_jax.cli.command import prepare
from bigr_jax.errors import UserError
from bigr_jax.generate.bernoulli import predict_bits
from bigr_jax.generate.codes import steps
from bigr_jax.generate.draws import KeyDraws
from bigr_jax.generate.guidance import pair, twice
from bigr_jax.generate.masked import (
    Generated,
    MaskedSampling,
    confidence,
    remaining_counts,
    sample_masked,
)
from bigr_jax.ops.bernoulli import posterior, sampling_times

ORDERS = ("entropy", "random", "raster")
# Where the config has no guidance, that of the published BiGR-L is timed beside none.
GUIDANCE = 2.5

Array = jax.Array
Form = Callable[[Any, Array, Array], Generated]


def main(argv: Sequence[str] | None = None) -> int:
    """Checks and times all settings; returns the exit status."""
    given = arguments(argv)
    # As `bigr` does: memory that is freed stays in the process.
    prepare()
    try:
        model, variables = trained(given.workdir) if given.workdir else untrained(given)
    except UserError as error:
        print(f"bigr: {error}", file=sys.stderr)
        return 2
    describe(model, given)
    labels = jnp.arange(given.images) % model.net.num_classes
    cases = {}
    scale = model.sampling.cfg_scale
    for guidance in (1.0, scale if model.sampling.guided else GUIDANCE):
        pieces = Pieces(model, guidance != 1.0, given.images)
        for order in given.orders:
            sampling = dataclasses.replace(model.sampling, order=order, cfg_scale=guidance)
            forms = {"plain": plain(pieces, sampling), "compiled": compiled(model, sampling)}
            drawn = [form(variables, jax.random.key(0), labels) for form in forms.values()]
            wrong = difference(*drawn)
            if wrong:
                print(f"UNEQUAL: {order}, cfg_scale {guidance:g}: {wrong}")
                return 1
            cases[order, guidance] = forms
    print(f"equal: both forms draw the same bits in the same order, {len(cases)} settings\n")
    rows = []
    for (order, guidance), forms in cases.items():
        turns = {
            name: lambda turn, form=form: form(variables, jax.random.key(turn), labels)
            for name, form in forms.items()
        }
        taken = interleaved(turns, given.repeats, warm=0)
        rows += [[order, f"{guidance:g}", *row] for row in compared(taken, "plain", given.images)]
    print(table(["order", "cfg_scale", *HEADER], rows))
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    scaled.add_arguments(parser)
    parser.add_argument("--images", type=positive, default=16, help="drawn at once; default 16")
    parser.add_argument("--repeats", type=positive, default=3, help="of every timing; default 3")
    parser.add_argument("--orders", type=orders, default=ORDERS, help="default all three")
    parser.add_argument("--workdir", help="a finished run, instead of a variant")
    return parser.parse_args(argv)


def orders(text: str) -> tuple[str, ...]:
    """Reads "entropy,random"; what is no order is refused by argparse."""
    names = tuple(text.split(","))
    if set(names) - set(ORDERS):
        raise ValueError(text)
    return names


def untrained(given: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the generator that the command line asks for, with random weights."""
    model = scaled.generator(scaled.given_config(given))
    return model, scaled.noise(scaled.shapes(model))


def trained(workdir: str) -> tuple[Any, Any]:
    """Returns the generator of a finished run and its variables."""
    from bigr_jax.train.run import Run

    run = Run(configs.load_json(os.path.join(workdir, "config.json")), workdir)
    return run.methods["generator"].model, run.variables("generator")


def describe(model: Any, given: argparse.Namespace) -> None:
    """Prints what is timed, and on what."""
    net, sampling = model.net, model.sampling
    weights = f"weights of {given.workdir}" if given.workdir else "random weights"
    name = given.workdir or f"bigr:{given.variant}"
    print(
        f"{name}: width {net.width}, {net.length} tokens of {net.bits} bits, "
        f"{sampling.iterations} iterations of {sampling.denoise_steps} denoising steps, {weights}\n"
        f"{given.images} images at once on {jax.devices()[0].device_kind}, jax {jax.__version__}; "
        f"seconds per image, median of {given.repeats}"
    )


def compiled(model: Any, sampling: MaskedSampling) -> Form:
    """Returns the package's sampler as one program."""

    def draw(variables: Any, key: Array, labels: Array) -> Generated:
        net = model.net.bind(variables)
        condition = conditions(net, labels, sampling.guided)
        draws = KeyDraws(key, (len(labels), net.length, net.bits))
        return sample_masked(
            steps(net, condition), draws, model.schedule, sampling, target=net.target
        )

    return jax.jit(draw)


def conditions(net: Any, labels: Array, guided: bool) -> Array:
    """Returns the embeddings of the classes, with guidance each beside that of no class."""
    condition = net.condition(labels)
    if not guided:
        return condition
    return pair(condition, net.condition(jnp.full_like(labels, net.num_classes)))


class Pieces:
    """The parts of the plain form, each a program of its own."""

    def __init__(self, model: Any, guided: bool, images: int) -> None:
        self.model, self.guided = model, guided
        self.shape = images, model.net.length, model.net.bits
        self.hidden, self.denoise = jax.jit(self._hidden), jax.jit(self._denoise)
        self.choose = jax.jit(self._choose, static_argnames=("order", "deterministic"))

    def draws(self, key: Array) -> KeyDraws:
        """Returns the random numbers, those of the compiled form."""
        return KeyDraws(key, self.shape)

    def _hidden(self, variables: Any, bits: Array, unknown: Array, labels: Array) -> Array:
        net, rows = self.model.net.bind(variables), twice if self.guided else lambda x: x
        return net.hidden(rows(bits), conditions(net, labels, self.guided), rows(unknown))

    def _denoise(
        self, variables: Any, key: Array, hidden: Array, chance: Array, at: Any, guidance: Array
    ) -> tuple[Array, Array]:
        # at: iteration, step, time, next time
        iteration, step, t, s = at
        net = self.model.net.bind(variables)
        x_t = (self.draws(key).denoise(iteration, step) < chance).astype(jnp.float32)
        p = predict_bits(
            net.denoise,
            x_t,
            t,
            hidden,
            target=net.target,
            guidance=guidance if self.guided else None,
            temperature=self.model.sampling.temperature,
        )
        return posterior(x_t, p, t, s, self.model.schedule), p

    def _choose(
        self, key: Array, state: Generated, p: Array, now: Any, order: str, deterministic: bool
    ) -> Generated:
        # now: iteration, how many tokens to take, noise on the confidences, number for "unknown"
        iteration, take, noise, unset = now
        draws, unknown = self.draws(key), state.iteration == unset
        if order == "entropy":
            scores = confidence(p) + noise * draws.gumbel(iteration)
        elif order == "random":
            scores = draws.order()
        else:
            scores = jnp.broadcast_to(-jnp.arange(self.shape[1], dtype=jnp.float32), self.shape[:2])
        places = jnp.argsort(jnp.argsort(jnp.where(unknown, -scores, jnp.inf), axis=1), axis=1)
        chosen = unknown & (places < take)
        drawn = (0.5 if deterministic else draws.bits(iteration)) < p
        bits = jnp.where(chosen[..., None], drawn.astype(jnp.float32), state.bits)
        return Generated(bits, jnp.where(chosen, iteration, state.iteration))


def plain(pieces: Pieces, sampling: MaskedSampling) -> Form:
    """Returns the sampler as a loop in Python, in which every step sees every token."""
    iterations, length = sampling.iterations, pieces.shape[1]
    left = remaining_counts(sampling.remaining, iterations, length)[:, length]
    times = sampling_times(pieces.model.schedule.total, sampling.denoise_steps)

    def draw(variables: Any, key: Array, labels: Array) -> Generated:
        unset = jnp.full(pieces.shape[:2], iterations, jnp.int32)
        state = Generated(jnp.zeros(pieces.shape), unset)
        for i in range(iterations):
            ratio = (i + 1) / iterations
            grown = {"constant": 1.0, "linear": ratio}[sampling.cfg_schedule]
            fade = {"constant": 1.0, "up": ratio, "down": 1.0 - ratio}[sampling.gumbel_schedule]
            guidance = np.float32(1.0 + (sampling.cfg_scale - 1.0) * grown)
            unknown = state.iteration == iterations
            hidden = pieces.hidden(variables, state.bits, unknown, labels)
            chance = jnp.full(pieces.shape, 0.5)
            for step, (t, s) in enumerate(itertools.pairwise((*times, 0))):
                at = i, step, t, s
                chance, p = pieces.denoise(variables, key, hidden, chance, at, guidance)
            noise = np.float32(sampling.gumbel_temperature * fade)
            now = i, int(left[i] - left[i + 1]), noise, iterations
            how = {"order": sampling.order, "deterministic": sampling.deterministic}
            state = pieces.choose(key, state, p, now, **how)
        return state

    return draw


def difference(a: Generated, b: Generated) -> str:
    """Returns how two drawings differ, "" where they are equal in every bit."""
    bits, places = (int((x != y).sum()) for x, y in zip(a, b, strict=True))
    if not bits + places:
        return ""
    return f"{bits} of {a.bits.size} bits, {places} of {a.iteration.size} places in the order"


if __name__ == "__main__":
    sys.exit(main())
