"""The scan against arrays of the official implementation (tests/parity/README.md).

Where the official code's gradients are not a number, because it takes the exponential before it
masks, ours are held against a float64 scan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.ops.ssd import ssd

FORMS = ("sequential", "chunked", "scanned")
compiled = jax.jit(ssd, static_argnames=("form", "chunk"))
NAMES = ("x", "dt", "A", "B", "C")


@pytest.fixture(scope="module")
def pack() -> Any:
    return np.load(Path(__file__).with_name("ssd_chunk_small.npz"))


@pytest.fixture(scope="module")
def inputs(pack: Any) -> list[Any]:
    return [jnp.asarray(pack[name]) for name in NAMES]


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1.5e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("form", [*FORMS, "associative"])
def test_values_and_final_state(pack: Any, inputs: Any, form: str) -> None:
    found = compiled(*inputs, form=form, chunk=32)
    close(found.y, pack["y_f64"])
    close(found.state, pack["final_state_f64"])


@pytest.mark.parametrize("form", FORMS)
def test_from_a_state(pack: Any, inputs: Any, form: str) -> None:
    found = compiled(*inputs, form=form, chunk=32, initial_state=jnp.asarray(pack["init_state"]))
    close(found.y, pack["y_init"])
    close(found.state, pack["final_state_init"])


@pytest.mark.parametrize("form", FORMS)
def test_a_length_that_the_chunk_does_not_divide(pack: Any, inputs: Any, form: str) -> None:
    x, dt, A, B, C = inputs
    found = compiled(x[:, :75], dt[:, :75], A, B[:, :75], C[:, :75], form=form, chunk=32)
    close(found.y, pack["y_len75"])
    close(found.state, pack["final_state_len75"])


@pytest.mark.parametrize("form", FORMS)
def test_segments(pack: Any, inputs: Any, form: str) -> None:
    found = compiled(*inputs, form=form, chunk=32, segment_ids=jnp.asarray(pack["segment_ids"]))
    close(found.y, pack["y_seg_f64"])
    close(found.state, pack["final_state_seg_f64"])


@pytest.mark.parametrize("form", FORMS)
def test_gradients(pack: Any, inputs: Any, form: str) -> None:
    def loss(*arrays: Any) -> Any:
        return jnp.square(ssd(*arrays, form=form, chunk=32).y).sum()

    for name, found in zip(NAMES, jax.jit(jax.grad(loss, range(5)))(*inputs), strict=True):
        wanted = pack[f"g{name}"]
        known = np.isfinite(wanted)
        assert known.mean() >= 0.75 and np.isfinite(found).all()
        close(found[known], wanted[known])
