"""Protobuf's text format, as `config.pbtxt` is written in: nested messages, without their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class Enum(str):
    """The name of an enumeration's value; it stands without quotes."""

    __slots__ = ()


def to_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """Write a message in protobuf's text format.

    Args:
        message: field -> str, int, bool, `Enum`, a message, or a sequence of one of these. A sequence of messages
            repeats the field, one of scalars becomes a list.
        indent: in front of every line.

    Returns:
        Lines, each ended with a newline.
    """
    lines: list[str] = []
    for field, value in message.items():
        repeated = isinstance(value, Sequence) and not isinstance(value, str)
        items: list[Any] = list(value) if repeated else [value]
        if items and isinstance(items[0], Mapping):
            lines += [f"{indent}{field} {{\n{to_pbtxt(item, indent + '  ')}{indent}}}\n" for item in items]
        elif repeated:
            lines.append(f"{indent}{field}: [{', '.join(map(_scalar, items))}]\n")
        else:
            lines.append(f"{indent}{field}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Enum):
        # JSON's escapes mean the same in text format.
        return json.dumps(value, ensure_ascii=False)
    return str(value)
