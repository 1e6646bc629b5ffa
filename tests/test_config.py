"""Settings: loading, overriding, every mistake refused, and JSON and back without loss."""

from __future__ import annotations

import functools
import math
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from bigr_jax import config as configs
from bigr_jax.errors import UserError

FILE = """
from ml_collections import ConfigDict, config_dict

VARIANTS = ("smoke", "small", "paper")


def get_config(variant="small"):
    config = ConfigDict()
    config.seed = 0
    config.model = dict(depth={"smoke": 1, "small": 2, "paper": 24}[variant], width=64)
    config.model.hidden = config.model.get_ref("width") * 4
    config.model.tied = True
    config.model.norm = "layer"
    config.model.multipliers = (1, 2)
    config.optimizer = dict(lr=1e-3, betas=(0.9, 0.95), decay_skip=())
    config.optimizer.clip = config_dict.placeholder(float)
    config.optimizer.freeze = config_dict.placeholder(tuple)
    config.data = dict(source="digits", crop=dict(size=8))
    return config
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("configs") / "my_idea.py"
    file.write_text(FILE)
    return str(file)


@pytest.fixture(scope="module")
def config(path: str) -> ConfigDict:
    return configs.load(f"{path}:small")


def refusal(config: ConfigDict, **overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        configs.override(config, {key.replace("__", "."): v for key, v in overrides.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_variant_is_small_unless_given(path: str) -> None:
    assert configs.load(path).model.depth == 2
    assert configs.load(f"{path}:paper").model.depth == 24
    with pytest.raises(UserError, match=r"variant='papr' is not known \(did you mean 'paper'\?\)"):
        configs.load(f"{path}:papr")


def test_a_slug_and_the_path_of_its_file_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    for variant in ("smoke", "small"):
        by_slug = configs.load(f"bigr:{variant}")
        assert by_slug.to_dict() == configs.load(f"configs/bigr.py:{variant}").to_dict()
        assert (by_slug.slug, by_slug.variant) == ("bigr", variant)


def test_slug_and_variant_are_at_the_top_and_the_config_is_locked(config: ConfigDict) -> None:
    assert (config.slug, config.variant) == ("my_idea", "small")
    with pytest.raises(AttributeError):
        config.model.new = 1


def test_a_file_with_stages_is_its_own_experiment(tmp_path: Path) -> None:
    file = tmp_path / "both.py"
    file.write_text(FILE + "\n\ndef stages(config):\n    return {}\n")
    assert configs.load(str(file)).slug == str(file)


def test_a_file_of_ones_own_is_known_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "both.py"
    file.write_text(FILE + "\n\ndef stages(config):\n    return {}\n")
    monkeypatch.chdir(tmp_path)
    assert configs.load("both.py").slug == configs.load("./both.py").slug == str(file)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.depth", "4", 4),
        ("model.depth", "1_000", 1000),
        ("model.tied", "false", False),
        ("model.tied", "True", True),
        ("model.norm", "rms=1, x", "rms=1, x"),
        ("model.multipliers", "(3,4,5)", (3, 4, 5)),
        ("model.multipliers", "3,4", (3, 4)),
        ("model.multipliers", "3", (3,)),
        ("model.multipliers", "()", ()),
        ("optimizer.lr", "3e-4", 3e-4),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.betas", "(0.5, 1)", (0.5, 1.0)),
        ("optimizer.decay_skip", "('bias', 'scale')", ("bias", "scale")),
        ("optimizer.clip", "2", 2.0),
        ("optimizer.freeze", "('head', 'body')", ("head", "body")),
        ("data.crop.size", "-1", -1),
    ],
)
def test_overrides_have_the_type_of_what_they_replace(
    config: ConfigDict, key: str, text: str, value: Any
) -> None:
    found = configs.flat(configs.override(config, {key: text}))[key]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(a) for a in found] == [type(b) for b in value]


def test_an_override_leaves_the_original_alone_and_carries_references(path: str) -> None:
    changed = configs.load(path, {"model.width": "10"})
    assert changed.model.hidden == 40
    before = configs.load(path)
    configs.override(before, {"model.width": "3"})
    assert (before.model.width, before.model.hidden) == (64, 256)
    assert changed.is_locked


def test_misspelt_keys_name_the_nearest(config: ConfigDict) -> None:
    assert refusal(config, model__dept="4") == (
        "config.model.dept is not a key (did you mean 'depth'?)"
    )
    assert refusal(config, modle__depth="4") == (
        "config.modle is not a key (did you mean 'model'?)"
    )
    assert refusal(config, zzzz="4").startswith("config.zzzz is not a key; config has: data, model")
    assert refusal(config, model="{}").startswith("config.model is a section; set its keys: --con")
    assert refusal(config, seed__x="1") == (
        "config.seed.x is not a key: config.seed is a value, not a section"
    )


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model.depth", "four", "int"),
        ("model.depth", "4.0", "int"),
        ("model.depth", "true", "int"),
        ("model.tied", "1", "bool"),
        ("model.tied", "yes", "bool"),
        ("optimizer.lr", "fast", "float"),
        ("optimizer.lr", "true", "float"),
        ("optimizer.clip", "none", "float"),
        ("optimizer.betas", "(0.9, 'x')", "tuple of float"),
        ("optimizer.betas", "(0.9,", "tuple of float"),
        ("model.multipliers", "(1.5, 2)", "tuple of int"),
        ("model.multipliers", "(True, 2)", "tuple of int"),
    ],
)
def test_ill_typed_values_name_key_value_and_type(
    config: ConfigDict, key: str, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        configs.override(config, {key: text})
    assert str(caught.value) == f"config.{key}: {text!r} given, {expected} expected"


def mutations(name: str) -> st.SearchStrategy[str]:
    """Every name that is one character away: one replaced, dropped or put in."""
    letters, place = st.sampled_from(string.ascii_lowercase), st.integers(0, len(name) - 1)
    return st.one_of(
        st.builds(lambda i, c: name[:i] + c + name[i + 1 :], place, letters),
        st.builds(lambda i: name[:i] + name[i + 1 :], place),
        st.builds(lambda i, c: name[:i] + c + name[i:], place, letters),
    )


@given(data=st.data())
def test_every_one_character_mistake_is_refused_with_the_right_name(
    config: ConfigDict, data: st.DataObject
) -> None:
    for key in configs.flat(config):
        names = key.split(".")
        at = data.draw(st.integers(0, len(names) - 1))
        wrong = data.draw(mutations(names[at]))
        assume(wrong not in functools.reduce(ConfigDict.__getitem__, names[:at], config))
        message = refusal(config, **{"__".join([*names[:at], wrong, *names[at + 1 :]]): "1"})
        where = ".".join(["config", *names[:at], wrong])
        assert message.startswith(f"{where} is not a key (did you mean ")
        # Two letters less one are near to almost anything.
        assert len(names[at]) == 2 or f"(did you mean {names[at]!r}?)" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.bad = None", "config.bad is None, of no type; write config_dict.placeholder"),
        ("config.bad = [1, 2]", "config.bad is a list; legal: bool, int, float, str, tuple"),
        ("config.bad = {'deep': len}", "config.bad.deep is a builtin_function_or_method; legal"),
        ("config.bad = (1, [2])", "config.bad is a tuple; legal"),
        ("return {}", "get_config returned a dict, not a ConfigDict"),
    ],
)
def test_what_cannot_be_written_down_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "idea.py"
    file.write_text(FILE.replace("config.seed = 0", f"config.seed = 0\n    {line}"))
    with pytest.raises(UserError, match=re.escape(message)):
        configs.load(str(file))


def test_a_file_without_variants_or_get_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "idea.py"
    for text in ("VARIANTS = ('small',)\n", FILE.replace("VARIANTS", "OTHER")):
        file.write_text(text)
        with pytest.raises(
            UserError, match=r"must have a tuple VARIANTS and a function get_config"
        ):
            configs.load(str(file))


def test_json_round_trip(config: ConfigDict, tmp_path: Path) -> None:
    file = str(tmp_path / "run" / "config.json")
    before = configs.override(config, {"optimizer.lr": "1"})
    configs.save(before, file)
    after = configs.load_json(file)
    assert after.is_locked
    assert configs.diff(before, after) == []
    assert configs.flat(after)["optimizer.betas"] == (0.9, 0.95)
    assert after.optimizer.clip is None
    assert configs.override(after, {"optimizer.clip": "1"}).optimizer.clip == 1.0
    with pytest.raises(UserError, match=r"nowhere\.json is missing"):
        configs.load_json(str(tmp_path / "nowhere.json"))
    (tmp_path / "cut.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"cut\.json is not JSON: "):
        configs.load_json(str(tmp_path / "cut.json"))


LEAVES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text())
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=3).map(tuple))
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=5).filter(
    lambda name: not hasattr(ConfigDict, name)
)


@given(
    tree=st.dictionaries(
        NAMES, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4
    )
)
def test_json_round_trip_of_any_config(
    tree: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = str(tmp_path_factory.mktemp("json") / "config.json")
    before = ConfigDict(tree)
    configs.save(before, file)
    assert configs.diff(before, configs.load_json(file)) == []
    assert configs.load_json(file).is_locked


def test_diff_names_keys_and_both_values(config: ConfigDict) -> None:
    other = configs.copy(configs.override(config, {"model.depth": "3", "model.tied": "false"}))
    other.extra = math.nan
    changes = configs.diff(config, other.lock())
    assert changes[:2] == [("model.depth", 2, 3), ("model.tied", True, False)]
    assert repr(changes[2:]) == "[Change(key='extra', before=absent, after=nan)]"
    assert configs.diff(other, other) == []


def test_diff_tells_types_apart() -> None:
    before, after = ConfigDict({"a": 1, "b": 1}), ConfigDict({"a": 1.0, "b": True})
    assert [change.key for change in configs.diff(before, after)] == ["a", "b"]


def test_a_copy_is_free(config: ConfigDict) -> None:
    free = configs.copy(config)
    free.model.brand_new = 1
    free.optimizer.clip = 1.0
    assert "brand_new" not in config.model
    assert config.optimizer.clip is None
    assert not free.is_locked


def test_placeholders_keep_their_type_in_a_copy(config: ConfigDict) -> None:
    assert config.optimizer.get_type("clip") is float
    assert configs.copy(config).optimizer.get_type("clip") is float
    assert isinstance(config_dict.placeholder(float), config_dict.FieldReference)
