"""From TOML tables to frozen dataclasses, strictly: an unknown key or a value of another type is an error."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from odm_deploy.documents import excerpt
from odm_deploy.errors import InputError
from odm_deploy.networks.config import is_finite

T = TypeVar("T")

_SCALARS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def from_tables(kind: type[T], tables: Mapping[str, Any], where: str = "") -> T:
    """A dataclass made of TOML tables; nested dataclasses are sections, and `where` is the section's dotted name.

    Raises:
        InputError: unknown or missing keys, or values of another type; the line names key and value.
    """
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in tables:
        if key not in fields:
            close = get_close_matches(key, fields, 1)
            raise InputError(
                f"unknown key {prefix}{key}",
                why=f"known here are {', '.join(fields)}",
                fix=f"did you mean {close[0]}?" if close else "",
            )
    for name, field in fields.items():
        if name not in tables and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"the recipe lacks {prefix}{name}", why="it has no default")
    return kind(**{name: _convert(hints[name], value, f"{prefix}{name}") for name, value in tables.items()})


def to_tables(config: Any) -> dict[str, Any]:
    """The plain values of a config dataclass, as JSON has them: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is a section", why=f"found {excerpt(repr(value))}")
        return from_tables(kind, value, where)
    if kind is Any:
        return value  # whoever asked for it checks it
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        wanted = "" if value in arguments else f"choose {', '.join(map(repr, arguments))}"
    elif origin is tuple:
        # One folder need not be written as a list of one.
        value = [value] if arguments[0] is str and isinstance(value, str) else value
        wanted = "" if isinstance(value, (list, tuple)) else "write a list"
    elif origin is Mapping:
        wanted = "" if isinstance(value, Mapping) else "write a table"
    else:
        if kind is float and type(value) in (int, float) and is_finite(value):
            value = float(value)
        wanted = "" if type(value) is kind else f"write {_SCALARS[kind]}"
        if kind is float and not wanted and not is_finite(value):
            wanted = "write a finite number"
    if wanted:
        raise InputError(f"cannot use {where} = {excerpt(repr(value))}", fix=wanted)
    if origin is tuple:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        return {
            str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in typing.cast("Any", value).items()
        }
    return value
