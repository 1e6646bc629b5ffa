"""Mixing: what a row becomes, of which shares, and that the answers have those of the pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data import mixing
from bigr_jax.errors import UserError

SIZE = (12, 20)


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Shares of 1000 keys, [1000, 12, 20], of either kind and of both."""
    keys = jax.random.split(jax.random.key(0), 1000)
    kinds = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0), "both": (0.8, 1.0)}
    return {
        name: np.broadcast_to(
            jax.jit(jax.vmap(lambda key, two=two: mixing.shares(key, SIZE, *two)))(keys),
            (1000, *SIZE),
        )
        for name, two in kinds.items()
    }


def test_mixup_draws_of_beta(drawn: dict[str, np.ndarray]) -> None:
    share = drawn["mixup"][:, 0, 0].astype(np.float64)
    assert (drawn["mixup"] == drawn["mixup"][:, :1, :1]).all()
    # Of Beta(a, a): variance 1 / (4 (2 a + 1)), fourth moment about 1/2 3 / (2 a + 3) times more.
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(share.var(), 1 / (4 * 2.6), rtol=0.08)
    fourth = 3 / (16 * 2.6 * 4.6)
    np.testing.assert_allclose(((share - 0.5) ** 4).mean(), fourth, rtol=0.12)


def test_cutmix_cuts_boxes_of_the_images_form(drawn: dict[str, np.ndarray]) -> None:
    covered = 1 - drawn["cutmix"]
    assert set(np.unique(covered)) == {0.0, 1.0}
    rows, columns = covered.any(2), covered.any(1)
    np.testing.assert_array_equal(covered, rows[:, :, None] & columns[:, None, :])
    # Boxes that touch no border have sides that one uniform number u makes: 2 (floor(s u^0.5) / 2).
    inner = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & rows.any(1)
    high, wide = rows[inner].sum(1), columns[inner].sum(1)
    assert inner.sum() > 50
    possible = {(2 * (int(12 * r) // 2), 2 * (int(20 * r) // 2)) for r in np.linspace(0, 1, 2000)}
    assert {*zip(high.tolist(), wide.tolist(), strict=True)} <= possible
    # Of a side r a centre anywhere leaves r - r^2 / 4 inside, and r^2 is uniform.
    np.testing.assert_allclose(covered.mean(), 1 / 2 - 1 / 5 + 1 / 48, atol=0.04)


def test_either_kind_is_taken_half_of_the_time(drawn: dict[str, np.ndarray]) -> None:
    summed = ((drawn["both"] > 0) & (drawn["both"] < 1)).all((1, 2))
    assert 0.44 < summed.mean() < 0.56
    cut = np.isin(drawn["both"], (0, 1)).all((1, 2))
    assert (summed ^ cut).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_row_is_mixed_with_that_at_the_other_end(drawn: dict[str, np.ndarray], kind: str) -> None:
    rng = np.random.default_rng(0)
    images, targets = rng.random((5, *SIZE, 3)), np.eye(5)
    share = next(s for s in drawn[kind] if 0.2 < s.mean() < 0.8)
    pixels = np.asarray(mixing.mixed(jnp.asarray(images, jnp.float32), share[..., None]))
    asked = np.asarray(mixing.mixed(jnp.asarray(targets, jnp.float32), share.mean()))
    for i, (image, target) in enumerate(zip(pixels, asked, strict=True)):
        other = 4 - i
        if kind == "cutmix":
            wanted = np.where(share[..., None] == 1, images[i], images[other])
        else:
            part = np.float64(share[0, 0])
            wanted = part * images[i] + (1 - part) * images[other]
        np.testing.assert_allclose(image, wanted, atol=1e-6)
        own = share.astype(np.float64).mean()
        np.testing.assert_allclose(target, own * targets[i] + (1 - own) * targets[other], atol=1e-6)


def test_nothing_asked_is_nothing_and_negative_is_refused() -> None:
    assert mixing.shares(jax.random.key(0), SIZE) is None
    with pytest.raises(UserError, match=r"model.cutmix=-1.0 must not be negative; 0 leaves it out"):
        mixing.shares(jax.random.key(0), SIZE, 0.8, -1.0)
