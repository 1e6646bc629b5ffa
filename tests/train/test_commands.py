"""What may be asked of a model that draws: classes, or captions."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.api import Method
from bigr_jax.data.captioned import FEATURES, WORDS, text_features
from bigr_jax.errors import UserError
from bigr_jax.train import commands
from bigr_jax.train.commands import _drawing


class Model:
    """Draws the sum of a text's features."""

    def __init__(self, text):
        self.net = SimpleNamespace(text=text)

    def describing(self, texts):
        return lambda variables, key, numbers, given: texts.features.sum((1, 2))[numbers]


def run(classes=3):
    info = SimpleNamespace(class_names=tuple("abc"))
    config = SimpleNamespace(data=SimpleNamespace(num_classes=classes))
    return SimpleNamespace(config=config, sources={"train": SimpleNamespace(info=info)})


def method(text):
    return Method(None, None, None, sample=lambda *given: "labels", model=Model(text))


def test_captions_are_drawn_row_by_row():
    captions = ["three and seven", "nine"]
    draw, names = _drawing(run(), method((WORDS, FEATURES)), None, captions)
    assert names == captions
    expected = text_features(captions)[0].sum((1, 2))
    drawn = draw(None, None, jnp.array([1, 0]), None)
    np.testing.assert_allclose(drawn, expected[[1, 0]], rtol=1e-6)


def test_classes_are_drawn_by_the_method_itself():
    for model in (method(()), method(())._replace(model=None)):
        draw, names = _drawing(run(), model, [2, 0], [])
        assert (draw(), names) == ("labels", tuple("abc"))


@pytest.mark.parametrize(
    ("text", "labels", "captions", "said"),
    [
        ((WORDS, FEATURES), None, [], "--captions is missing"),
        ((), None, ["three", "one"], "--captions=three;one: this model draws classes"),
        ((120, 2048), None, ["three"], "reads the features of another encoder"),
        ((), [3], [], "--classes=3: classes are 0 to 2"),
    ],
)
def test_what_a_model_cannot_draw_is_refused(text, labels, captions, said):
    with pytest.raises(UserError, match=said):
        _drawing(run(), method(text), labels, captions)


def test_only_a_model_of_codes_draws_at_another_size(monkeypatch):
    found = run()
    found.config.slug, found.methods = "other", {"model": method(())}
    monkeypatch.setattr(commands, "opened", lambda workdir, overrides: found)
    with pytest.raises(UserError, match="--size=12: other draws at the size of training alone"):
        commands.sample("here", None, None, 1, 0, size=12)
