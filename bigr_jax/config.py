"""Settings: from a config file and the command line to one locked ConfigDict, and to JSON and back.

A setting is a bool, int, float, str, a tuple of these or of tuples, or a section of settings. One
that may be absent is `ml_collections.config_dict.placeholder(int)`. In messages a setting is called
by what one types: `config.model.depth`.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from bigr_jax import files, registry
from bigr_jax.audit import Audited, build, check_read
from bigr_jax.errors import UserError, nearest, one_of

__all__ = [
    "Audited",
    "Change",
    "build",
    "check_read",
    "copy",
    "diff",
    "flat",
    "load",
    "load_json",
    "override",
    "save",
]

DEFAULT_VARIANT = "small"
SCALARS = (bool, int, float, str)
NONE = "$none"


class Change(NamedTuple):
    """A setting that differs between two configs; `ABSENT` where a config does not have it."""

    key: str
    before: Any
    after: Any


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Returns the locked settings of "slug:variant" or "path/to/config.py:variant".

    overrides  {"model.depth": "4"}: dotted key and text, as typed after `--config.`
    The variant is "small" unless given. The result has `slug` and `variant` at its top.
    Raises UserError when there is no such config or variant, or for an override as `override` does.
    """
    ref, _, variant = spec.partition(":")
    variant = variant or DEFAULT_VARIANT
    path = registry.config_path(ref)
    module = registry.run_file(path)
    variants = getattr(module, "VARIANTS", None)
    if not isinstance(variants, tuple) or not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} must have a tuple VARIANTS and a function get_config(variant)")
    if variant not in variants:
        raise one_of("variant", variant, variants)
    config = module.get_config(variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned a {type(config).__name__}, not a ConfigDict")
    with config.unlocked():
        if "slug" not in config:
            # A file that also has `stages` is a config and an experiment in one.
            own = hasattr(module, "stages")
            config.slug = str(Path(path).resolve()) if own else Path(path).stem
        if "variant" not in config:
            config.variant = variant
    for key, value in flat(config).items():
        _check_legal(key, value, _holder(config, key))
    return override(config, overrides or {})


def override(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Returns a locked copy of `config` with settings replaced by texts, {"model.depth": "4"}.

    A text is read as the type that the setting has; a whole number will do for a float.
    Raises UserError for a key that is no setting, naming the nearest, and for another type.
    """
    config = copy(config)
    for key, text in overrides.items():
        _override(config, key, text)
    return config.lock()


def copy(config: ConfigDict) -> ConfigDict:
    """Returns an independent, unlocked copy; references between settings are kept."""
    return copying.deepcopy(config).unlock()


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns {dotted key: value} of all settings."""
    return dict(_leaves(config, ""))


def diff(before: ConfigDict, after: ConfigDict) -> list[Change]:
    """Returns the settings that differ, in type or in value, by dotted key."""
    old, new = flat(before), flat(after)
    pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new}]
    return [Change(*pair) for pair in pairs if _exact(pair[1]) != _exact(pair[2])]


def save(config: ConfigDict, path: str) -> None:
    """Writes the settings as JSON."""
    files.write_json(path, _encode(config))


def load_json(path: str) -> ConfigDict:
    """Returns the locked settings that `save` wrote, of the same types.

    Raises UserError when there is no such file, or it is not JSON.
    """
    try:
        found = files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if found is None:
        raise UserError(f"{path} is missing")
    return _decode(found).lock()


def _override(config: ConfigDict, key: str, text: str) -> None:
    section = _holder(config, key)
    name = key.rpartition(".")[2]
    if isinstance(section[name], ConfigDict):
        example = next(iter(flat(section[name])), "key")
        raise UserError(f"config.{key} is a section; set its keys: --config.{key}.{example}=...")
    kind = section.get_type(name)
    refused = UserError(f"config.{key}: {text!r} given, {_kind_name(section[name], kind)} expected")
    # absl takes 0 and 1 for a bool as well; in a config they are numbers.
    if kind is bool and text.lower() not in ("true", "false"):
        raise refused
    default = section[name]
    argv = ["bigr", f"--config.{key}={text}"]
    parsed = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=parsed, sys_argv=argv)
        parsed(argv)
    except flags.Error:
        raise refused from None
    if kind is tuple:
        section[name] = _same_elements(section[name], default or (), refused)


def _same_elements(
    value: tuple[Any, ...], like: tuple[Any, ...], refused: UserError
) -> tuple[Any, ...]:
    """Returns `value` with whole numbers made floats where `like` has floats only.

    Raises `refused` when the elements are not of the one type that those of `like` have.
    """
    kinds = {type(item) for item in like}
    if len(kinds) != 1:
        return value
    kind = kinds.pop()
    if kind is float:
        value = tuple(float(item) if type(item) is int else item for item in value)
    if any(type(item) is not kind for item in value):
        raise refused
    return value


def _kind_name(value: Any, kind: type) -> str:
    if kind is tuple and len({type(item) for item in value or ()}) == 1:
        return f"tuple of {type(value[0]).__name__}"
    return kind.__name__


def _holder(config: ConfigDict, key: str) -> ConfigDict:
    """Returns the section that holds a dotted key. Raises UserError where there is none."""
    section, where = config, "config"
    *sections, name = key.split(".")
    for step in sections:
        section = _step(section, where, step)
        where += f".{step}"
        if not isinstance(section, ConfigDict):
            raise UserError(f"{where}.{name} is not a key: {where} is a value, not a section")
    _step(section, where, name)
    return section


def _step(section: ConfigDict, where: str, name: str) -> Any:
    if name not in section:
        hint = nearest(name, section) or f"; {where} has: {', '.join(section)}"
        raise UserError(f"{where}.{name} is not a key{hint}")
    return section[name]


def _leaves(config: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_legal(key: str, value: Any, section: ConfigDict) -> None:
    name = key.rpartition(".")[2]
    if value is None and section.get_type(name) in (*SCALARS, tuple):
        return
    if value is None:
        raise UserError(f"config.{key} is None, of no type; write config_dict.placeholder(int)")
    if not _is_legal(value):
        kind = type(value).__name__
        raise UserError(f"config.{key} is a {kind}; legal: bool, int, float, str, tuple, section")


def _is_legal(value: Any) -> bool:
    if type(value) is tuple:
        return all(_is_legal(item) for item in value)
    return type(value) in SCALARS


def _exact(value: Any) -> tuple[type, str]:
    # 1, 1.0 and True are equal in Python, and nan is not equal to itself.
    return type(value), repr(value)


def _encode(config: ConfigDict) -> dict[str, Any]:
    encoded = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            value = _encode(value)
        elif value is None:
            value = {NONE: config.get_type(name).__name__}
        encoded[name] = value
    return encoded


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if NONE in value:
        kinds = {kind.__name__: kind for kind in (*SCALARS, tuple)}
        return config_dict.placeholder(kinds[value[NONE]])
    return ConfigDict({name: _decode(item) for name, item in value.items()})
