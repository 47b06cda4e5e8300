"""Configurations: frozen dataclasses ↔ strict JSON ↔ the command line.

Owns reading, writing and overriding of any config dataclass. Refuses to know what a field means:
meaning, defaults and checks stand beside the code that uses them. Types a field may have: int,
float, bool, str, Literal, `X | None`, tuples, dataclasses of these, and unions of dataclasses: the
one whose field names fit the keys best is meant. A string literal under a field is its help text.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Cfg = TypeVar("Cfg")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message starts with the dotted name of the field."""


def to_dict(cfg: Any) -> dict[str, Any]:
    """A config as plain JSON values, every field present. Raises ConfigError for a number JSON
    cannot hold."""
    return _plain(cfg, at=type(cfg).__name__)


def from_dict(cls: type[Cfg], data: dict[str, Any]) -> Cfg:
    """The inverse of `to_dict`. Raises ConfigError for an unknown, missing or ill-typed key, naming
    the dotted field."""
    return _build(cls, data, at="")


def absolute_paths(cfg: Cfg, *fields: str) -> Cfg:
    """A copy in which the named (dotted) path fields are absolute. Empty strings and None stay as
    they are.

    A worker runs in a directory of its own, so relative paths must be resolved where the command
    was typed. URLs stay as they are.
    """
    for field in fields:
        cfg = _map_field(cfg, field.split("."), absolute)
    return cfg


def parse(
    recipes: dict[str, Callable[[], Cfg]],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
) -> Cfg:
    """A complete config from a command line: a recipe's name, then overrides such as `--run.steps
    100`.

    `recipes` maps a name to a function that returns the complete config; its docstring is the
    recipe's help. A command line that names something unknown or ill-typed prints what is wrong and
    leaves with exit status 2.
    """
    import tyro  # only command lines need it; workers read plain dicts

    args = list(sys.argv[1:] if argv is None else argv)
    options: dict[str, Any] = _SPELLING | {"config": (tyro.conf.AvoidSubcommands,)}
    if args and args[0] in recipes:
        name, rest = args[0], args[1:]
        default, about = recipes[name](), inspect.getdoc(recipes[name])
        options |= {"prog": f"{prog} {name}", "description": about, "args": rest}
        return tyro.cli(type(default), default=default, **options)
    choice = tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in recipes.items()},
        {name: inspect.getdoc(recipe) or "" for name, recipe in recipes.items()},
    )
    # No recipe was named: tyro prints the help or what is wrong, and exits.
    return tyro.cli(choice, prog=prog, description=description, args=args, **options)


def parse_one(
    cls: type[Cfg], argv: Sequence[str] | None = None, *, prog: str, description: str
) -> Cfg:
    """As `parse`, of a command that has no recipes: the defaults of `cls`, then overrides."""
    import tyro

    return tyro.cli(cls, args=argv, prog=prog, description=description, **_SPELLING)


_SPELLING: dict[str, Any] = {"use_underscores": True}  # options are spelt as fields are


def _plain(value: Any, *, at: str) -> Any:
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {f.name: _plain(getattr(value, f.name), at=f"{at}.{f.name}") for f in fields}
    if isinstance(value, tuple | list):
        return [_plain(item, at=f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{at}: {value} has no place in JSON; use a finite number or None")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{at}: a {type(value).__name__} cannot be written as JSON")


def _build(cls: type, data: Any, *, at: str) -> Any:
    section = at or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{section}: expected a section of keys, got {_show(data)}")
    names = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise ConfigError(_unknown(_join(at, str(key)), str(key), names))
    hints = get_type_hints(cls)
    values = {}
    for name in names:
        if name not in data:
            raise ConfigError(f"{_join(at, name)}: missing; write it out, nothing is assumed")
        values[name] = _convert(hints[name], data[name], at=_join(at, name))
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from error


def _convert(kind: Any, value: Any, *, at: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build(cast(type, kind), value, at=at)
    if origin is Literal:
        return _literal(get_args(kind), value, at=at)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, at=at)
    if origin is tuple:
        return _tuple(get_args(kind), value, at=at)
    if kind is float and type(value) is int:
        return float(value)  # JSON writers drop the ".0"
    if kind in (int, float, bool, str) and type(value) is kind:
        return value
    raise ConfigError(f"{at}: expected {_name(kind)}, got {_show(value)}")


def _literal(choices: tuple, value: Any, *, at: str) -> Any:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    nearest = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"{at}: {value!r} is none of {', '.join(map(repr, choices))}{hint}")


def _union(kinds: tuple, value: Any, *, at: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], value, at=at)
    sections = [kind for kind in rest if dataclasses.is_dataclass(kind)]
    if sections and isinstance(value, dict):
        return _build(cast(type, _best_fit(sections, value)), value, at=at)
    for kind in rest:
        if kind is type(value):
            return value
    raise ConfigError(f"{at}: expected {' or '.join(map(_name, kinds))}, got {_show(value)}")


def _best_fit(kinds: list, keys: dict[str, Any]) -> Any:
    """The dataclass with the fewest keys that it lacks or that are not given."""

    def misfit(kind: Any) -> int:
        return len({f.name for f in dataclasses.fields(kind)} ^ set(keys))

    return min(kinds, key=misfit)


def _tuple(kinds: tuple, value: Any, *, at: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{at}: expected a list, got {_show(value)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{at}: expected {len(kinds)} values, got {len(value)}")
    return tuple(
        _convert(kind, item, at=f"{at}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _unknown(dotted: str, key: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    section = dotted[: -len(key)]
    return (
        f"{dotted}: no such key; the nearest is {section}{nearest[0]}"
        if nearest
        else f"{dotted}: no such key"
    )


def _map_field(cfg: Any, path: list[str], change: Callable[[Any], Any]) -> Any:
    head, *rest = path
    names = [f.name for f in dataclasses.fields(cfg)]
    if head not in names:
        raise ConfigError(_unknown(head, head, names))
    value = getattr(cfg, head)
    value = _map_field(value, rest, change) if rest else change(value)
    return dataclasses.replace(cfg, **{head: value})


def absolute(value: Any) -> Any:
    """A path, or several, made absolute; a URL, None and "" as they are. Raises ConfigError for a
    relative one in a submitted job."""
    if isinstance(value, tuple):
        return tuple(absolute(item) for item in value)
    if not value or "://" in value:
        return value
    path = os.path.expanduser(value)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not os.path.isabs(path):
        raise ConfigError(
            f"{value!r} is a relative path, and a submitted job runs in a temporary copy of the "
            "folder: give the absolute path"
        )
    return os.path.abspath(path)


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _name(kind: Any) -> str:
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _show(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
