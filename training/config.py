"""From TOML tables to frozen dataclasses, strictly: an unknown key or a value of another type is an error."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from odm_deploy.errors import InputError

T = TypeVar("T")


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
