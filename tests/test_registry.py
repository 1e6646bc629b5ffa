"""Experiments and configs are found by slug and by path, and what they lack is said precisely."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigr_jax import registry
from bigr_jax.errors import UserError

WHOLE = '''"""Tiny: a method of two lines (2024, arXiv 0000.00000).

Claim     better than nothing:
          by 3 points.
Evidence  none < some; 3 seeds.
Command   bigr train --config=tiny:small
"""
import dataclasses


@dataclasses.dataclass
class Settings:
    depth: "int" = 1


def stages(config):
    return {"only": config}


def study(config, lab):
    return None
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments in the place of the package's own."""
    for slug in ("tiny", "hydra", "biformer"):
        (tmp_path / f"{slug}.py").write_text(WHOLE)
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(registry, "_folders", lambda kind: [tmp_path])
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_path_of_the_users_own_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "my_idea.py", WHOLE)
    found = registry.load(path)
    assert (found.slug, found.path) == ("my_idea", path)
    assert found.claim == "better than nothing: by 3 points."
    assert found.evidence == "none < some; 3 seeds."
    assert found.command == "bigr train --config=tiny:small"
    assert found.doc.startswith("Tiny: a method of two lines")
    assert found.stages({"a": 1}) == {"only": {"a": 1}}
    assert found.study(None, None) is None


def test_a_file_is_run_anew_so_that_edits_count(tmp_path: Path) -> None:
    path = write(tmp_path / "idea.py", WHOLE)
    registry.load(path)
    write(tmp_path / "idea.py", WHOLE.replace('"only"', '"other_name"'))
    assert list(registry.load(path).stages(0)) == ["other_name"]


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = registry.load(write(tmp_path / "a" / "idea.py", WHOLE))
    second = registry.load(write(tmp_path / "b" / "idea.py", WHOLE.replace("only", "b")))
    assert list(first.stages(0)) == ["only"]
    assert list(second.stages(0)) == ["b"]


def test_slugs(folder: Path) -> None:
    assert registry.names() == ["biformer", "hydra", "tiny"]
    assert registry.load("hydra").path == str(folder / "hydra.py")
    assert (
        registry.describe("tiny").title == "Tiny: a method of two lines (2024, arXiv 0000.00000)."
    )
    assert registry.config_path("tiny") == str(folder / "tiny.py")


def test_describing_imports_nothing(folder: Path) -> None:
    write(folder / "tiny.py", WHOLE + "\nraise SystemExit('imported')\n")
    assert registry.describe("tiny").command == "bigr train --config=tiny:small"


@pytest.mark.parametrize(("typed", "meant"), [("hidra", "hydra"), ("biforme", "biformer")])
def test_an_unknown_slug_is_told_the_nearest(folder: Path, typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"'{typed}' is no experiment \(did you mean '{meant}'\?"):
        registry.load(typed)
    with pytest.raises(UserError, match=rf"'{typed}' is no config \(did you mean '{meant}'\?"):
        registry.config_path(typed)


def test_a_slug_like_none_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(UserError, match="known: biformer, hydra, tiny"):
        registry.load("zzz")
    with pytest.raises(UserError, match="'__init__' is no experiment"):
        registry.load("__init__")


def test_a_missing_path_is_told_the_nearest_file_beside_it(folder: Path) -> None:
    with pytest.raises(UserError, match=r"hydro\.py is not a file \(did you mean 'hydra\.py'\?\)"):
        registry.load(str(folder / "hydro.py"))
    with pytest.raises(UserError, match=r"nowhere/x\.py is not a file; `bigr new NAME`"):
        registry.load("nowhere/x.py")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Claim  ", "Boast  ", "lacks a line 'Claim  ...' in its docstring$"),
        ("Evidence  none < some; 3 seeds.", "Evidence", "lacks a line 'Evidence  ...' in its"),
        ("def study", "def studies", r"lacks a function study\(config, lab\)$"),
        ("study(config, lab)", "study(lab)", r"lacks study\(config, lab\): it has study\(lab\)$"),
        ("stages(config)", "stages(cfg)", r"lacks stages\(config\): it has stages\(cfg\)$"),
        ("def stages(config):\n    return", "stages =", r"lacks a function stages\(config\)$"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in WHOLE
    text = WHOLE.replace(old, new).replace('= {"only": config}', "= {}")
    with pytest.raises(UserError, match=message):
        registry.load(write(tmp_path / "idea.py", text))


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        registry.load(write(tmp_path / "idea.py", "x = 1\n"))
    message = str(caught.value)
    for part in ("'Claim", "'Evidence", "'Command", "stages(config)", "study(config, lab)"):
        assert part in message
    assert "\n" not in message


def test_a_parameter_with_a_default_is_allowed(tmp_path: Path) -> None:
    text = WHOLE.replace("stages(config)", "stages(config, *, extra=None)")
    assert registry.load(write(tmp_path / "idea.py", text)).slug == "idea"


def test_every_experiment_of_the_zoo_has_a_config() -> None:
    for slug in registry.names():
        assert Path(registry.config_path(slug)).is_file()
