"""From a TOML recipe to frozen dataclasses, strictly: an unknown key or a value of another type is an error.

A recipe may say `extends = "other.toml"` (relative to itself) and then lists only what differs; of several,
`extends = ["method.toml", "budget.toml"]`, later ones win. `--set run.batch=4` overrides single values; the right-hand
side is read as TOML, and as a string where it is not TOML.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from odm_deploy.errors import InputError, UsageError

T = TypeVar("T")

_PLACES = {"{data}": ("ODM_DATA", "../shared/data"), "{weights}": ("ODM_WEIGHTS", "../shared/weights")}


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The tables of a recipe, merged over what it extends.

    Raises:
        InputError: missing file, not TOML, or recipes that extend each other in a circle.
    """
    return _read(Path(path), ())


def apply_overrides(tables: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`tables` with each `section.key=value` applied.

    Raises:
        UsageError: an override that is not of that form, or that goes through a value.
    """
    result = _merge({}, tables)
    for text in overrides:
        dotted, equals, value = text.partition("=")
        *sections, key = dotted.strip().split(".")
        if not equals or not sections or not key:
            raise UsageError(f"cannot read --set {text}", fix="write --set section.key=value, e.g. run.iterations=200")
        table = result
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UsageError(f"cannot read --set {text}", why=f"{section} is a value, not a section")
        table[key] = _toml_value(value.strip())
    return result


def from_tables(kind: type[T], tables: Mapping[str, Any], where: str = "") -> T:
    """A dataclass made of TOML tables; nested dataclasses are sections.

    Args:
        kind: a frozen dataclass.
        tables: its values.
        where: dotted name of the section, for messages.

    Raises:
        InputError: unknown or missing keys, or values of another type; the line names key and value.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in tables:
        if key not in fields:
            close = get_close_matches(key, fields, 1)
            raise InputError(
                f"unknown key {_dotted(where, key)}",
                why=f"known here are {', '.join(fields)}",
                fix=f"did you mean {close[0]}?" if close else "",
            )
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in tables:
            values[name] = _convert(hints[name], tables[name], _dotted(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"the recipe lacks {_dotted(where, name)}", why="it has no default")
    return kind(**values)


def to_tables(config: Any) -> dict[str, Any]:
    """The plain values of a config dataclass, for JSON; tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return typing.cast("dict[str, Any]", plain(dataclasses.asdict(config)))


def expand_places(path: str) -> Path:
    """A path with `{data}` and `{weights}` replaced by $ODM_DATA and $ODM_WEIGHTS (default ../shared/...)."""
    for placeholder, (variable, default) in _PLACES.items():
        path = path.replace(placeholder, os.environ.get(variable, default))
    return Path(path).expanduser()


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        raise InputError(f"{path} extends itself", why=" -> ".join(item.name for item in (*seen, resolved)))
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML", why=str(error)) from None
    extends = tables.pop("extends", [])
    bases = cast("list[Any]", extends if isinstance(extends, list) else [extends])
    merged: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str):
            raise InputError(f"cannot read {path}", why=f"extends = {extends!r} is not a file name or a list of them")
        merged = _merge(merged, _read(path.parent / base, (*seen, resolved)))
    return _merge(merged, tables)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section. A section that names another `name` starts afresh.

    Options of one method mean nothing to another, so `[method] name = "pams"` drops those of the base recipe.
    """
    result = {key: _merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            fresh = "name" in value and value["name"] != below.get("name")
            result[key] = _merge({} if fresh else below, value)
        else:
            result[key] = _merge(value, {}) if isinstance(value, Mapping) else value
    return result


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is a section", why=f"found {value!r}")
        return from_tables(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"cannot use {where} = {value!r}", fix=f"choose {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"cannot use {where} = {value!r}", fix="write a list")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"cannot use {where} = {value!r}", fix="write a table")
        # A table of free form keeps its values; whoever asked for it checks them.
        return {
            str(key): item if arguments[1] is Any else _convert(arguments[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if isinstance(kind, types.UnionType) or kind not in names:
        raise TypeError(f"{where}: config fields cannot be {kind}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"cannot use {where} = {value!r}", fix=f"write {names[kind]}")
    return value
