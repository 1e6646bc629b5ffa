"""Published files of BERT with Hydra layers: names, shapes, and every bit of a round trip."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.audit import Audited
from bigr_jax.errors import UserError
from bigr_jax.interop import files, stages
from bigr_jax.interop.torch import from_torch, shapes, to_torch
from bigr_jax.models.encoder import Encoder, MaskedModel
from bigr_jax.registry import load

TINY = MaskedModel(13, 16, Encoder(2, options={"head_dim": 8, "state": 4}, norm_first=False), 2)


def drawn(model: MaskedModel) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes(model).items()}


@pytest.mark.parametrize(
    "model",
    [TINY, TINY.clone(positions=7, encoder=TINY.encoder.clone(norm_first=True, parent=None))],
)
def test_round_trip_is_exact(model: MaskedModel) -> None:
    state = drawn(model)
    # As it is saved: the matrix of the decoder once more, and a counter.
    table = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.weight"] = table
    state["bert.embeddings.position_ids"] = np.arange(7)[None]
    variables = from_torch(model, state)
    np.testing.assert_array_equal(variables["params"]["table"], table)
    mixer = variables["params"]["encoder"]["layers"]["mixer"]
    theirs = state["bert.encoder.layer.1.layer.mixer.out_proj.weight"]
    np.testing.assert_array_equal(mixer["out"]["kernel"][1], theirs.T)
    back = to_torch(model, variables)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].tobytes() == value.tobytes(), name


def test_the_published_size_through_its_config(tmp_path: Any) -> None:
    known = {"data.channels": "1"}
    method = load("hydra").stages(Audited(configs.load("hydra:paper", known)))["encoder"]
    (part,) = stages.parts("encoder", method)
    found = shapes(part.module)
    assert sum(math.prod(shape) for shape in found.values()) == 112_086_712
    assert found["bert.encoder.layer.22.layer.mixer.in_proj.weight"] == (3376, 768)
    # Saved by the official trainer, names begin with that of its wrapper.
    zeros = {f"model.{name}": np.zeros(shape, np.uint8) for name, shape in found.items()}
    path = tmp_path / "hydra.npz"
    np.savez_compressed(path, **zeros)
    stages.check([part], path)
    del zeros["model.cls.predictions.decoder.bias"]
    np.savez_compressed(path, **zeros)
    with pytest.raises(UserError, match=r"1 missing: cls\.predictions\.decoder\.bias\. A --config"):
        stages.check([part], path)
    assert not files.parts(path) - {"model"}


def test_other_layers_have_no_published_names() -> None:
    with pytest.raises(UserError, match=r"encoder.mixer='attention', hidden=32: published"):
        shapes(TINY.clone(encoder=Encoder(1, "attention", heads=2, hidden=32)))
