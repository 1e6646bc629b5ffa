"""Settings that nothing reads are found; modules are built from sections, mistakes refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from bigr_jax.config import Audited, build, check_read
from bigr_jax.errors import UserError


@pytest.fixture
def config() -> ConfigDict:
    tree: dict[str, Any] = {
        "slug": "tiny",
        "variant": "small",
        "seed": 0,
        "model": {"depth": 2, "width": 8, "head": {"kind": "linear", "bias": True}},
        "sample": {"cfg_scale": 2.5},
    }
    return ConfigDict(tree).lock()


def test_reading_by_attribute_and_by_item_is_remembered(config: ConfigDict) -> None:
    view = Audited(config)
    assert (view.seed, view["model"]["depth"], view.model.head.kind) == (0, 2, "linear")
    assert view.unread() == [
        "model.head.bias",
        "model.width",
        "sample.cfg_scale",
        "slug",
        "variant",
    ]
    assert view.model.unread() == ["model.head.bias", "model.width"]


def test_looking_at_names_reads_nothing(config: ConfigDict) -> None:
    view = Audited(config)
    assert ("depth" in view.model, "dept" in view.model, len(view.model)) == (True, False, 3)
    assert list(view.model) == view.model.keys() == ["depth", "head", "width"]
    assert "linear" in repr(view)
    _ = view.model, view.model.head
    assert len(view.unread()) == 8


@pytest.mark.parametrize(
    "take",
    [
        lambda view: dict(**view.model.head),
        lambda view: dict(view.model.head.items()),
        lambda view: view.model.head.to_dict(),
        lambda view: build(lambda kind, bias: {"kind": kind, "bias": bias}, view.model.head),
    ],
)
def test_every_way_of_taking_a_section_reads_it(config: ConfigDict, take: Any) -> None:
    view = Audited(config)
    assert take(view) == {"kind": "linear", "bias": True}
    assert view.model.unread() == ["model.depth", "model.width"]


def test_to_dict_is_plain(config: ConfigDict) -> None:
    view = Audited(config)
    assert view.to_dict() == config.to_dict()
    assert type(view.to_dict()["model"]["head"]) is dict
    assert view.unread() == []


def test_a_key_that_is_not_there_names_the_nearest(config: ConfigDict) -> None:
    view = Audited(config)
    message = r"^config\.model\.dept is not a key \(did you mean 'depth'\?\)$"
    for ask in (lambda: view.model.dept, lambda: view["model"]["dept"]):
        with pytest.raises(UserError, match=message):
            ask()
    assert not hasattr(view.model, "dept")
    with pytest.raises(UserError, match=r"config\.model\.get is not a key"):
        view.model.get("depth")


def test_a_view_is_read_only_and_can_be_copied(config: ConfigDict) -> None:
    view = Audited(config)
    with pytest.raises(AttributeError, match=r"config\.model\.depth cannot be set"):
        view.model.depth = 3
    assert copy.copy(view.model.head).kind == "linear"


def test_check_read_names_unread_keys_with_the_nearest_that_was_read(config: ConfigDict) -> None:
    config = ConfigDict({**config.to_dict(), "model": {"depth": 2, "dpeth": 3, "zzz": 1}})
    view = Audited(config)
    _ = view.seed, view.model.depth
    with pytest.raises(UserError) as caught:
        check_read(view, except_sections=("sample",))
    assert str(caught.value) == (
        "nothing reads config.model.dpeth (did you mean 'depth'?), config.model.zzz"
    )


def test_check_read_is_silent_when_all_was_read(config: ConfigDict) -> None:
    view = Audited(config)
    _ = view.seed, view.model.to_dict()
    check_read(view, except_sections=("sample",))
    with pytest.raises(UserError, match=r"nothing reads config\.sample\.cfg_scale$"):
        check_read(view, except_sections=("samp",))
    check_read(view, except_sections=("sample.cfg_scale",))


def test_a_misspelt_section_is_told_the_nearest_key(config: ConfigDict) -> None:
    view = Audited(ConfigDict({"model": {"depth": 2}, "modle": {"depth": 3}}))
    _ = view.model.depth
    with pytest.raises(UserError, match=r"config\.modle\.depth \(did you mean 'model\.depth'\?\)"):
        check_read(view)


@dataclasses.dataclass
class Head:
    kind: Literal["linear", "mlp"]
    bias: bool = False


@dataclasses.dataclass
class Net:
    depth: int
    width: int
    head: Head
    rate: float = 0.0
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    limit: int | None = None
    dtype: Any = None


class Linen(nn.Module):
    depth: int
    kind: Literal["a", "b"] = "a"
    name_of: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(self.depth)(x)


def function(depth: int, *, width: int = 3) -> tuple[int, int]:
    return depth, width


SECTION: dict[str, Any] = {"depth": 2, "width": 8, "head": {"kind": "mlp", "bias": True}}


def test_dataclasses_linen_modules_and_functions_are_built(config: ConfigDict) -> None:
    assert build(Net, ConfigDict(SECTION)) == Net(2, 8, Head("mlp", True))
    assert build(Linen, {"depth": 3}, name="x").depth == 3
    assert build(Linen, {"depth": 3}, name="x").name == "x"
    assert build(function, {"depth": 1}, width=5) == (1, 5)
    assert build(functools.partial(function, width=7), {"depth": 1}) == (1, 7)
    view = Audited(config)
    assert build(Net, view.model) == Net(2, 8, Head("linear", True))
    assert view.model.unread() == []
    assert build(lambda **rest: rest, {"any": 1}) == {"any": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rate": 1}, 1.0),
        ({"rate": 0.5}, 0.5),
        ({"sizes": (1, 2)}, (1, 2)),
        ({"pair": (1, 2)}, (1, 2)),
        ({"limit": 3}, 3),
        ({"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_values_of_the_annotated_type_pass(changes: dict[str, Any], expected: Any) -> None:
    found = getattr(build(Net, {**SECTION, **changes}), next(iter(changes)))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dpth": 3}, "config.dpth is not a field of Net (did you mean 'depth'?)"),
        ({"depth": True}, "config.depth: True given, int expected by Net"),
        ({"depth": 2.0}, "config.depth: 2.0 given, int expected by Net"),
        ({"depth": "2"}, "config.depth: '2' given, int expected by Net"),
        ({"rate": True}, "config.rate: True given, float expected by Net"),
        ({"sizes": 3}, "config.sizes: 3 given, tuple[int, ...] expected by Net"),
        ({"sizes": (1, 2.0)}, "config.sizes: (1, 2.0) given, tuple[int, ...] expected by Net"),
        ({"pair": (1,)}, "config.pair: (1,) given, tuple[int, float] expected by Net"),
        ({"limit": "x"}, "config.limit: 'x' given, int | None expected by Net"),
        ({"head": {"kind": "mlp", "bais": 1}}, "config.head.bais is not a field of Head"),
        ({"head": {"kind": "mlp", "bias": 1}}, "config.head.bias: 1 given, bool expected by Head"),
        ({"head": {"kind": "lin"}}, "config.head.kind='lin' is not known (did you mean 'linear'?)"),
        ({"head": {}}, "config.head.kind is missing: Head needs it"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Net, {**SECTION, **changes})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_full_dotted_keys_missing_fields_and_values_given_twice(config: ConfigDict) -> None:
    view = Audited(config)
    with pytest.raises(UserError, match=r"^config\.model\.head is not a field of Linen$"):
        build(Linen, view.model)
    with pytest.raises(UserError, match=r"^config\.width is missing: Net needs it$"):
        build(Net, {"depth": 1}, head=Head("mlp"))
    with pytest.raises(UserError, match=r"^config\.depth cannot be set here: Linen gets it"):
        build(Linen, {"depth": 1}, depth=2)
    with pytest.raises(UserError, match=r"^config\.name is not a field of Linen \(did you mean"):
        build(Linen, {"depth": 1, "name": "x"})
