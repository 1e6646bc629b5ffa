"""The benchmark of sizes: what it draws is judged at the trained size, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import registry
from bigr_jax.data.source import ArraySource, Info
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitObjective
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.tasks.code_generator import CodeGenerator

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "resolution.py"
KEY = jax.random.key(0)
TOKENIZER = BinaryAutoencoder(
    filters=4, multipliers=(1, 2), blocks=1, attention_resolutions=(), embedding=8, bits=3,
    image_size=8, channels=1, groups=2,
)  # fmt: skip
NET = BiGR(
    depth=1, width=8, heads=1, bits=3, grid=(4, 4), num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, dropout=0.0, target="direct",
)  # fmt: skip
MODEL = CodeGenerator(
    net=NET,
    tokenizer=TOKENIZER,
    referee=ConvNet(2, (8,)),
    objective=BitObjective("direct"),
    schedule=make_schedule("linear", 1),
    sampling=MaskedSampling(iterations=1, denoise_steps=1, cfg_scale=1.0),
    label_drop=0.1,
    mask_per_batch=False,
    augmentation="",
    per_class=2,
    probed=False,
)


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        # As Python does for a script: it shares modules with those beside it.
        patch.syspath_prepend(str(PATH.parent))
        yield registry.run_file(PATH)


@pytest.fixture
def workdir(benchmark, monkeypatch):
    """Stands for a finished run."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 2
    info = Info("two", 2, ("zero", "one"), (8, 8, 1), "none", "random")
    source = ArraySource(images, labels, info)
    batch = {"label": labels, "image": images}

    def drawn(init):
        draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
        return jax.tree.map(draw, nn.unbox(jax.eval_shape(init)))

    own = drawn(lambda: TOKENIZER.init(KEY, jnp.zeros((1, 8, 8, 1))))["params"]
    given = {
        "tokenizer": {"params": {"autoencoder": own}},
        "referee": drawn(lambda: MODEL.referee.init(KEY, jnp.zeros((1, 8, 8, 1)))),
    }
    variables = drawn(lambda: MODEL.init(KEY, batch, given))
    run = SimpleNamespace(
        methods={"generator": MODEL.method()},
        variables=lambda name: variables,
        given=lambda name: given,
        sources={"train": source, "test": source},
    )
    monkeypatch.setattr(benchmark.configs, "load_json", lambda path: None)
    monkeypatch.setattr(benchmark, "Run", lambda config, workdir: run)
    return run


def test_every_size_has_a_row(benchmark, workdir, capsys):
    assert benchmark.main(["--workdir=here", "--scales=1,1.5", "--images=8"]) == 0
    printed = capsys.readouterr().out
    assert "here: trained at 8 pixels, 16 tokens; 8 images, 1 iterations, cfg_scale 1" in printed
    rows = re.findall(r"^\| *(\d+) *\| *(\d+) *\| *(\w+) *\|(.*)\|$", printed, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        ("8", "16", "trained"),
        ("12", "36", "interpolated"),
        ("12", "36", "extrapolated"),
    ]
    for *_, numbers in rows:
        coded, right, distance, seconds = (float(text) for text in numbers.split("|"))
        assert 0 <= coded <= 1 and 0 <= right <= 1 and distance >= 0 and seconds > 0


@pytest.mark.parametrize("size", [8, 12])
def test_what_is_coded_is_of_the_kind_asked_for(benchmark, monkeypatch, size):
    monkeypatch.setattr(benchmark, "encode", lambda net, variables, images: images)
    monkeypatch.setattr(benchmark, "decode", lambda net, variables, images: images)
    levels = np.arange(240, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (240, 8, 8, 1))
    kinds = [levels % 2 == 0, levels % 2 == 1]
    coded = benchmark.Coded(MODEL.at_size(size), {"tokenizer": None}, 8, images, kinds)
    numbers = np.arange(130) % 2
    found = coded(numbers)
    assert found.shape == (130, 8, 8, 1)
    shown = np.round(255 * found[:, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(shown % 2, numbers)
    assert len(np.unique(shown)) > 60
    assert np.ptp(found, axis=(1, 2, 3)).max() < 1e-6


def test_sizes_that_do_not_fit_are_named(benchmark, workdir, capsys):
    assert benchmark.main(["--workdir=here", "--scales=1.1"]) == 2
    assert "size=9 is not a multiple of 2 pixels" in capsys.readouterr().err
    workdir.methods["generator"] = MODEL.method()._replace(
        model=SimpleNamespace(referee=None, sampling=MODEL.sampling)
    )
    assert benchmark.main(["--workdir=here"]) == 2
    assert "here has no referee" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--scales=big", "--scales=0", "--images=0"])
def test_mistakes_are_named(benchmark, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--workdir=here", wrong])
    assert stopped.value.code == 2
    assert wrong.partition("=")[2] in capsys.readouterr().err
