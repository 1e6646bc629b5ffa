"""Long sequences in parts: on seq = 8 a device keeps an eighth of the activations, and the values
are those of one device.

As a program, `python test_sequence.py MIXER ...`, this file prints what it saw on eight devices.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.models.bigr import BiGR
from bigr_jax.train import sharding
from bigr_jax.train.loop import scope

MIXERS = ("attention", "causal_attention", "hydra")
# With the class token, just below 8 x 128 and 8 x 1024: whole chunks on every device, and what does
# not grow with the length is little.
SIDES = {"hydra": 90}
SIDE = 31


def network(mixer: str) -> BiGR:
    side = SIDES.get(mixer, SIDE)
    return BiGR(
        depth=2, width=128, heads=4, bits=16, grid=(side, side), num_classes=10,
        head_width=64, head_blocks=1, dropout=0.0, mixer=mixer,
    )  # fmt: skip


def inputs(tokens: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2, 2, tokens, 16), np.int32)
    mask, t = rng.random((2, tokens)) < 0.5, rng.integers(1, 9, (2, tokens), np.int32)
    return bits[0], np.array([3, 7], np.int32), mask, bits[1], t


def observed(mixer: str) -> dict[str, Any]:
    """Returns the bytes of temporaries on one device and on each of eight, and the largest
    difference between the gradients that they compute, relative to the largest value of each.
    """
    net, found = network(mixer), []
    examples = inputs(net.length)
    boxed = jax.eval_shape(net.init, jax.random.key(0), *examples)
    # What begins as zero would hide the rest.
    start = jax.tree.map(
        lambda x: np.random.default_rng(x.size).normal(0, 0.1, x.shape).astype(x.dtype),
        nn.unbox(boxed),
    )

    def loss(variables: Any, *arrays: Any) -> Any:
        return jnp.square(net.apply(variables, *arrays)).mean()

    for count in (1, 8):
        mesh = sharding.make_mesh({"data": 1, "seq": count}, jax.devices()[:count])
        variables = jax.tree.map(jax.device_put, start, sharding.place(boxed, mesh))
        arrays = jax.device_put(examples, sharding.replicated(mesh))
        with scope(mesh):
            program = jax.jit(jax.value_and_grad(loss)).lower(variables, *arrays).compile()
        values = jax.device_get(jax.tree.leaves(program(variables, *arrays)))
        found.append((program.memory_analysis().temp_size_in_bytes, values))
    (one, values), (part, others) = found
    differences = [
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))
        for a, b in zip(values, others, strict=True)
    ]
    return {"share": part / one, "difference": max(differences)}


@pytest.fixture(scope="module")
def eight(run_python: Any) -> dict[str, Any]:
    done = run_python([__file__, *MIXERS], devices=8)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_device_keeps_its_share_of_the_activations(eight: Any, mixer: str) -> None:
    assert eight[mixer]["share"] < 1 / 8 + 0.03


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_values_are_those_of_one_device(eight: Any, mixer: str) -> None:
    assert eight[mixer]["difference"] < 2e-5


if __name__ == "__main__":
    print(json.dumps({mixer: observed(mixer) for mixer in sys.argv[1:]}))
