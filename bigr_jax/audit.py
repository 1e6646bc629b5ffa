"""Catches settings that nothing reads, and builds modules from sections of settings."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from bigr_jax.errors import UserError, nearest, one_of

T = TypeVar("T")
# What identifies a run rather than sets something.
NAMES = ("slug", "variant")


class MissingKey(UserError, AttributeError):
    """A setting was asked for that the config does not have."""


class Audited:
    """A read-only view of a config that remembers which settings were read.

    Sections are views as well, and `**view.model` works. Whatever hands out a value counts as
    reading it. Asking for a setting that is not there raises MissingKey, naming the nearest one.
    """

    __slots__ = ("_config", "_path", "_read")

    def __init__(self, config: ConfigDict, path: str = "", read: set[str] | None = None) -> None:
        self._config = config
        self._path = path
        self._read: set[str] = set() if read is None else read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Audited.__slots__:
            return object.__setattr__(self, name, value)
        raise AttributeError(f"config.{self._path}{name} cannot be set: settings are read-only")

    def __getitem__(self, name: str) -> Any:
        if name not in self._config:
            raise MissingKey(f"config.{self._path}{name} is not a key{nearest(name, self._config)}")
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Audited(value, f"{self._path}{name}.", self._read)
        self._read.add(self._path + name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._config

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._config)

    def __repr__(self) -> str:
        return f"Audited(config.{self._path.rstrip('.')}: {self._config.to_dict()})"

    def keys(self) -> list[str]:
        """Returns the names in this section; reads nothing."""
        return list(self._config.keys())

    def items(self) -> list[tuple[str, Any]]:
        """Returns (name, value or view) pairs."""
        return [(name, self[name]) for name in self.keys()]

    def to_dict(self) -> dict[str, Any]:
        """Returns the section as plain dicts."""
        return {
            name: value.to_dict() if isinstance(value, Audited) else value
            for name, value in self.items()
        }

    def unread(self) -> list[str]:
        """Returns the dotted names of the settings of this section that were never read."""
        unread = []
        for name in self.keys():
            value = self._config[name]
            if isinstance(value, ConfigDict):
                unread += self[name].unread()
            elif self._path + name not in self._read:
                unread.append(self._path + name)
        return unread


def check_read(config: Audited, except_sections: tuple[str, ...] = ()) -> None:
    """Raises UserError naming the settings that were never read, and for each the nearest that was.

    except_sections  dotted names of sections, or of settings, that may stay unread
    """
    free = (*NAMES, *except_sections)
    complaints = []
    for key in config.unread():
        if any(key == name or key.startswith(f"{name}.") for name in free):
            continue
        section, _, name = key.rpartition(".")
        beside = [k.rpartition(".")[2] for k in config._read if k.rpartition(".")[0] == section]
        # Where nothing of the section was read, the section itself may be misspelt.
        hint = nearest(name, beside) if beside else nearest(key, config._read)
        complaints.append(f"config.{key}{hint}")
    if complaints:
        raise UserError(f"nothing reads {', '.join(complaints)}")


def build(
    cls: Callable[..., T], section: Audited | ConfigDict | Mapping[str, Any], **extra: Any
) -> T:
    """Calls a dataclass, linen module or function with the settings of a section, and with `extra`.

    Values are checked against annotations of int, float, bool, str, tuple, Literal and unions of
    these; a section whose annotation is a dataclass is built in turn. All settings of the section
    count as read.
    Raises UserError for a setting that `cls` does not take, naming the nearest, for one that is
    given twice or missing, and for a value of another type.
    """
    view = section if isinstance(section, Audited) else Audited(ConfigDict(section))
    where, what = f"config.{view._path}", getattr(cls, "__name__", str(cls))
    known, needed, more = _takes(cls)
    hints = _hints(cls)
    given = {}
    for name, value in view.items():
        if name not in known and not more:
            raise UserError(f"{where}{name} is not a field of {what}{nearest(name, known)}")
        if name in extra:
            raise UserError(f"{where}{name} cannot be set here: {what} gets it from elsewhere")
        given[name] = _checked(where + name, value, hints.get(name, Any), what)
    missing = [name for name in needed if name not in given and name not in extra]
    if missing:
        raise UserError(f"{where}{missing[0]} is missing: {what} needs it")
    return cls(**given, **extra)


def _takes(cls: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """Returns the names `cls` takes, those without a default, and whether it takes any other."""
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    needed = [p.name for p in named if p.default is p.empty]
    if {"parent", "name"} <= set(known):
        # A linen module: its place and name among other modules are no settings.
        known = [name for name in known if name not in ("parent", "name")]
    return known, needed, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _hints(cls: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        # Annotations that only a type checker can resolve: nothing to check against.
        return {}


def _checked(key: str, value: Any, kind: Any, what: str) -> Any:
    if isinstance(value, Audited):
        return build(kind, value) if _is_dataclass(kind) else value.to_dict()
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise one_of(key, value, typing.get_args(kind))
    if not _fits(value, kind):
        expected = kind.__name__ if type(kind) is type else str(kind).replace("typing.", "")
        raise UserError(f"{key}: {value!r} given, {expected} expected by {what}")
    return float(value) if kind is float else value


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; true for types that no setting can be checked against."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str, tuple, type(None)):
        return type(value) is kind
    return True
