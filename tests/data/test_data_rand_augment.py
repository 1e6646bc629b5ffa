"""RandAugment: every change against Pillow's, the draws, and batches spread over devices.

As a program this file prints what four devices made of a batch, and what the program exchanges.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bigr_jax.data import rand_augment as ra
from bigr_jax.data.augment import augment
from bigr_jax.data.mixing import mixed
from bigr_jax.train import sharding

HEIGHT, WIDTH = 20, 25
KINDS_OF_EXCHANGE = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
KINDS = list(ra.CHANGES)
RUN = jax.jit(ra.apply)
CASES = [(name, s, sign) for name in KINDS for s in (0.37, 0.9) for sign in (1, -1)]


def picture(channels: int) -> np.ndarray:
    """Slow waves, a little noise, and neither black nor white."""
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / (5 + 2 * c) + c) + np.cos(y / (4 + c)) for c in range(channels)]
    levels = 120 + 45 * np.stack(waves, -1) + rng.integers(-9, 10, (HEIGHT, WIDTH, channels))
    return levels.astype(np.uint8)


def moved(image: Image.Image, matrix: tuple[float, ...], fill: Any) -> Image.Image:
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": fill}
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)


def oracle(image: Image.Image, name: str, strength: float, sign: int) -> Image.Image:
    fill = (124, 116, 104) if image.mode == "RGB" else 117
    shear, share = 0.3 * strength * sign, 0.45 * strength * sign
    match name:
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case "posterize":
            return ImageOps.posterize(image, 4 - int(strength * 4))
        case "solarize":
            return ImageOps.solarize(image, 256 - int(strength * 256))
        case "solarize_add":
            added = int(strength * 110)
            table = [min(255, i + added) if i < 128 else i for i in range(256)]
            return image.point(table * len(image.getbands()))
        case "color" | "contrast" | "brightness" | "sharpness":
            enhance = getattr(ImageEnhance, name.capitalize())
            return enhance(image).enhance(max(0.1, 1 + 0.9 * strength * sign))
        case "rotate":
            how = {"resample": Image.Resampling.BILINEAR, "fillcolor": fill}
            return image.rotate(30 * strength * sign, **how)
        case "shear_x":
            return moved(image, (1, shear, 0, 0, 1, 0), fill)
        case "shear_y":
            return moved(image, (1, 0, 0, shear, 1, 0), fill)
        case "translate_x":
            return moved(image, (1, 0, share * WIDTH, 0, 1, 0), fill)
        case "translate_y":
            return moved(image, (1, 0, 0, 0, 1, share * HEIGHT), fill)
    raise AssertionError(name)


@pytest.mark.parametrize("channels", [3, 1])
def test_every_change_is_pillows_within_a_level(channels: int) -> None:
    image = picture(channels)
    kinds, strengths, signs = zip(
        *((KINDS.index(name) + 1, s, sign) for name, s, sign in CASES), strict=True
    )
    levels = np.broadcast_to(image.astype(np.float32), (len(CASES), *image.shape))
    how = [np.asarray(v, t)[:, None] for v, t in ((kinds, "i4"), (strengths, "f4"), (signs, "f4"))]
    found = np.asarray(RUN(levels, *how), np.float64)
    given = Image.fromarray(image.squeeze())
    for case, one in zip(CASES, found, strict=True):
        wanted = np.asarray(oracle(given, *case), np.float64).reshape(image.shape)
        if case[0] in ("equalize", "invert", "posterize", "solarize", "solarize_add"):
            np.testing.assert_array_equal(one, wanted, str(case))
        apart = np.abs(one - wanted)
        assert apart.max() <= 1 and apart.mean() < 0.06, case
        plain = channels == 1 and case[0] == "color"
        assert (one == levels[0]).all() == plain, case


def test_flat_images_and_single_pixels_pass() -> None:
    kinds = np.arange(len(KINDS), dtype=np.int32)[:, None] + 1
    ones = np.ones((len(KINDS), 1), np.float32)
    for shape in ((1, 1, 1), (2, 3, 3)):
        flat = np.full((len(KINDS), *shape), 130, np.float32)
        found = dict(zip(KINDS, np.asarray(RUN(flat, kinds, ones, ones)), strict=True))
        assert np.isfinite(list(found.values())).all()
        for name in ("auto_contrast", "equalize", "sharpness", "color", "contrast"):
            np.testing.assert_array_equal(found[name], 130, name)


def test_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(ra, "apply", lambda levels, *how: seen.extend(how) or levels)
    images = jnp.asarray(np.random.default_rng(0).random((4000, 1, 1, 1)), jnp.float32)
    out = ra.rand_augment(jax.random.key(0), images, 2, 9)
    np.testing.assert_allclose(out, np.round(images * 255) / 255, atol=1e-7)
    kind, strength, sign = map(np.asarray, seen)
    assert kind.shape == strength.shape == sign.shape == (4000, 2)
    shares = np.bincount(kind.ravel(), minlength=16) / 8000
    np.testing.assert_allclose(shares, [0.5, *[0.5 / 15] * 15], atol=0.02)
    assert abs(np.corrcoef(kind.T > 0)[0, 1]) < 0.06
    assert strength.max() == 1 and abs(strength.mean() - 0.9) < 0.003
    assert 0.045 < strength.std() < 0.055 and (np.abs(sign) == 1).all()
    assert abs(sign.mean()) < 0.05


def test_devices_change_nothing_and_exchange_no_images(run_python: Any) -> None:
    found = json.loads(run_python([__file__], devices=4).stdout)
    assert found["same"] and found["mixed"]
    assert not found["augmenting"]
    # A row is mixed with one that another device may have.
    assert found["mixing"] == ["collective-permute"]


def observed() -> dict[str, Any]:
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2})
    images = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)

    def augmented(images: Any) -> Any:
        return augment(jax.random.key(0), images, "randaugment:2:9,erase:0.25")

    def reversed_(images: Any) -> Any:
        return mixed(images, jnp.full((1, 1, 1), 0.25))

    found: dict[str, Any] = {}
    alone = jax.jit(augmented)(images)
    with jax.set_mesh(mesh):
        placed = jax.device_put(images, sharding.batch_sharding(mesh))
        programs = [jax.jit(run).lower(placed).compile() for run in (augmented, reversed_)]
        together, both = (np.asarray(program(placed)) for program in programs)
    for name, program in zip(("augmenting", "mixing"), programs, strict=True):
        text = program.as_text()
        found[name] = [kind for kind in KINDS_OF_EXCHANGE if f" {kind}" in text]
    found["same"] = bool((np.asarray(alone) == together).all())
    found["mixed"] = bool(np.allclose(both, 0.25 * images + 0.75 * images[::-1], atol=1e-6))
    return found


if __name__ == "__main__":
    print(json.dumps(observed()))
