"""BiGR here against the same mathematics in PyTorch: a training step, and drawing images.

    python benchmarks/peer.py [--variant=paper] [--narrow=8] [--set=KEY=VALUE ...] [--batch=4]
                              [--images=2] [--repeats=7] [--parts=training,sampling] [--eager]

PyTorch runs with what it offers for speed: fused attention and AdamW, `torch.inference_mode`, the
two branches of the guidance in one batch, and `torch.compile`, without which --eager stays; that
chooses what the backward pass computes again, which here `model.remat` does. PyTorch draws in two
ways, with the transcoder on all tokens as published, and on the unknown ones alone.
The weights are moved over with `interop.torch.to_torch`. First both must give the same logits,
losses, gradients and, in a short run on the same random numbers, the same bits; else nothing is
timed and the exit status is 1. Needs PyTorch; nothing else here does.

PyTorch's threads wait for each other many times in every step: beside another busy program they
are slower many times over, which says nothing of either. Time it on an idle machine, or put before
the command `taskset -c 0`, which leaves both a single core.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scaled
from timing import HEADER, compared, interleaved, positive, repeated, table

from bigr_jax.cli.command import prepare
from bigr_jax.errors import UserError
from bigr_jax.generate.codes import steps
from bigr_jax.generate.draws import Draws, KeyDraws, RecordedDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import MaskedSampling, sample_masked
from bigr_jax.interop.torch import to_torch
from bigr_jax.losses.bits import draw, transcoder_loss
from bigr_jax.ops.masking import cosine_mask

try:
    import peer_torch
    import torch
except ModuleNotFoundError as error:
    print(f"peer: {error}; pip install torch", file=sys.stderr)
    raise

RATE, DECAY, BETAS = 1e-4, 2e-2, (0.9, 0.95)
# Nothing, or all but matrix products, is computed again in the backward pass.
REMAT = ("none", "dots")
# What both draw with: the published choices, few steps to compare, the config's to time.
SHORT, TIMED = MaskedSampling(3, 4), ("iterations", "denoise_steps", "gumbel_temperature")

Array = jax.Array


def main(argv: Sequence[str] | None = None) -> int:
    """Checks and times; returns the exit status."""
    given = arguments(argv)
    # As `bigr` does: memory that is freed stays in the process.
    prepare()
    try:
        config = scaled.given_config(given)
    except UserError as error:
        print(f"peer: {error}", file=sys.stderr)
        return 2
    model = scaled.generator(config)
    variables = scaled.noise(scaled.shapes(model))
    theirs = peer_torch.BiGR(model.net, config.diffusion.steps)
    theirs.take({name: torch.tensor(x) for name, x in to_torch(model.net, variables).items()})
    print(
        f"bigr:{given.variant}, widths divided by {given.narrow}: width {model.net.width}, depth "
        f"{model.net.depth}, {model.net.length} tokens of {model.net.bits} bits; "
        f"jax {jax.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    for name in given.parts:
        wrong = PARTS[name](given, model, variables, theirs)
        if wrong:
            print(f"UNEQUAL: {wrong}")
            return 1
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    scaled.add_arguments(parser)
    parser.set_defaults(variant="paper", narrow=8)
    for name, default in (("batch", 4), ("images", 2), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    parser.add_argument("--parts", type=parts, default=tuple(PARTS), help="default both")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args(argv)


def parts(text: str) -> tuple[str, ...]:
    """Reads "training,sampling"; what is no part is refused by argparse."""
    names = tuple(text.split(","))
    if set(names) - set(PARTS):
        raise ValueError(text)
    return names


def training(given: argparse.Namespace, model: Any, variables: Any, theirs: Any) -> str:
    """Compares a step of AdamW; returns what is unequal."""
    inputs = drawn(model, given.batch)
    tensors = [torch.tensor(np.asarray(x)) for x in inputs]
    their_logits = theirs.logits(*tensors)
    their_loss = theirs.loss(their_logits, *tensors)
    their_loss.backward()
    their_norm = float(sum(p.grad.square().sum() for p in theirs.parameters()) ** 0.5)
    their_loss = their_loss.detach()
    forms = {f"PyTorch{how}": step for how, step in their_steps(theirs, tensors, given.eager)}
    their_names = list(forms)
    for remat in REMAT:
        ours = dataclasses.replace(model, net=model.net.clone(remat=remat))
        gradient = jax.value_and_grad(functools.partial(lost, ours), has_aux=True)
        (loss, logits), grads = jax.jit(gradient)(variables, inputs)
        norm = float(optax.tree.norm(grads))
        apart = float(np.abs(np.asarray(logits) - their_logits.detach().numpy()).max())
        if apart > 1e-4:
            return f"logits differ by {apart:.2g}"
        for name, a, b in (("losses", loss, their_loss), ("gradients", norm, their_norm)):
            if abs(float(a) - float(b)) > 1e-4 * abs(float(b)):
                return f"{name} are {float(a):.6g} and {float(b):.6g}"
        forms[f"here, remat {remat}"] = our_step(ours, variables, inputs)
    print(f"equal: logits to {apart:.1g}, loss {float(loss):.6f}, gradient's norm {norm:.5g}\n")
    taken = interleaved(forms, given.repeats, warm=2)
    print(f"training: a step of AdamW, batch {given.batch}; median of {given.repeats}\n")
    best = min(their_names, key=lambda name: taken[name].median)
    print(table(HEADER, compared(taken, best)) + "\n")
    return ""


def drawn(model: Any, batch: int) -> tuple[Array, ...]:
    """Returns codes, labels, mask, noisy codes and their times, as training draws them."""
    keys = jax.random.split(jax.random.key(0), 4)
    net = model.net
    codes = jax.random.bernoulli(keys[0], shape=(batch, net.length, net.bits)).astype(jnp.float32)
    labels = jax.random.randint(keys[1], (batch,), 0, net.num_classes)
    t, x_t = draw(keys[2], codes, model.schedule, net.target)
    return codes, labels, cosine_mask(keys[3], batch, net.length), x_t, t


def lost(model: Any, variables: Any, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    """Returns the training loss and the logits."""
    codes, _, mask, x_t, t = inputs
    logits = model.net.apply(variables, *inputs)
    found = transcoder_loss(logits, codes, x_t, t, model.schedule, mask, model.objective)
    return found.loss, logits


def our_step(model: Any, variables: Any, inputs: tuple[Array, ...]) -> Callable[[int], Any]:
    """Returns a function that takes a training step here, from where the last has led."""
    tx = optax.adamw(RATE, *BETAS, weight_decay=DECAY)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, inputs: Any) -> tuple[Any, Array]:
        variables, moments = state
        gradient = jax.value_and_grad(functools.partial(lost, model), has_aux=True)
        (loss, _), grads = gradient(variables, inputs)
        updates, moments = tx.update(grads, moments, variables)
        return (optax.apply_updates(variables, updates), moments), loss

    state = jax.tree.map(jnp.array, (variables, tx.init(variables)))

    def once(turn: int) -> Array:
        nonlocal state
        state, loss = step(state, inputs)
        return loss

    return once


def their_steps(
    theirs: Any, tensors: list[Any], eager: bool
) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Yields functions that take a training step in PyTorch: as it is, and compiled."""
    for how in ("",) if eager else ("", ", compiled"):
        net = theirs.copy()
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True
        )

        def loss(net: Any = net) -> Any:
            return net.loss(net.logits(*tensors), *tensors)

        # Its workers would be forked from a process that has JAX's threads.
        torch._inductor.config.compile_threads = 1
        forward = torch.compile(loss) if how else loss

        def once(turn: int, forward: Any = forward, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad(set_to_none=True)
            value = forward()
            value.backward()
            optimizer.step()
            return float(value.detach())

        yield how, once


def sampling(given: argparse.Namespace, model: Any, variables: Any, theirs: Any) -> str:
    """Compares drawing codes in entropy order; returns what is unequal."""
    labels = np.arange(given.images) % model.net.num_classes
    forms: dict[str, Any] = {}
    wrong = ""
    chosen = dataclasses.replace(SHORT, **{name: getattr(model.sampling, name) for name in TIMED})
    shape = (given.images, model.net.length, model.net.bits)
    recorded = recording(shape)
    inputs = variables, jax.random.key(0), jnp.asarray(labels)
    ours = np.asarray(sampler(model, SHORT, lambda key: recorded)(*inputs))
    for eager in (True,) if given.eager else (True, False):
        for every in (True, False):
            form = peer_torch.Sampler(theirs, every, eager)
            found = form.draw(SHORT, labels, peer_torch.Recorded(recorded))
            apart = int((ours != found.numpy()).sum())
            name = f"PyTorch{'' if eager else ', compiled'}, {'all' if every else 'unknown'} tokens"
            wrong = wrong or (f"{apart} of {ours.size} bits, {name}" if apart else "")
            forms[name] = repeated(form.draw, chosen, labels, peer_torch.Drawn(shape))
    if wrong:
        return wrong
    print(f"equal: the same {ours.size} bits, on the same random numbers\n")
    draw = sampler(model, chosen, lambda key: KeyDraws(key, shape))
    forms["here"] = lambda turn: draw(variables, jax.random.key(turn), inputs[2])
    taken = interleaved(forms, given.repeats)
    print(
        f"sampling: {given.images} images, {chosen.order} order, {chosen.iterations} iterations of "
        f"{chosen.denoise_steps} steps, cfg_scale {chosen.cfg_scale:g}; seconds per image, median "
        f"of {given.repeats}\n"
    )
    best = min((name for name in forms if "all" in name), key=lambda name: taken[name].median)
    print(table(HEADER, compared(taken, best, given.images)) + "\n")
    return ""


def recording(shape: tuple[int, int, int]) -> RecordedDraws:
    """Returns random numbers for a short run, written down."""
    rng, count = np.random.default_rng(1), SHORT.iterations
    return RecordedDraws(
        jnp.asarray(rng.random((count, SHORT.denoise_steps, *shape)), jnp.float32),
        jnp.asarray(rng.gumbel(size=(count, *shape[:2])), jnp.float32),
        jnp.asarray(rng.random((count, *shape)), jnp.float32),
    )


def sampler(
    model: Any, chosen: MaskedSampling, draws: Callable[[Array], Draws]
) -> Callable[[Any, Array, Array], Array]:
    """Returns the sampler here, compiled: variables, key of the random numbers, labels -> codes."""

    def draw(variables: Any, key: Array, labels: Array) -> Array:
        net = model.net.bind(variables)
        condition = pair(net.condition(labels), net.condition(net.null(len(labels))))
        how = (draws(key), model.schedule, chosen)
        return sample_masked(steps(net, condition), *how, target=net.target).bits

    return jax.jit(draw)


PARTS: dict[str, Callable[..., str]] = {"training": training, "sampling": sampling}

if __name__ == "__main__":
    sys.exit(main())
