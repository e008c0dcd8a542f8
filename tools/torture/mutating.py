"""Damaged copies of a file: its bytes, or the values of the document that it holds."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import tomllib
from typing import Any

_NUMBERS = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80")
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(2**63), 0.0, -0.0, 1e308, 1e-320, math.nan, math.inf),
    *("", "x", "0", "é" * 50, "\x00", "../../etc/passwd", "a" * 10_000, "[/x]", "\x1b]0;x\x07"),
    *([], [[]], [0] * 1000, {}, {"a": {"b": [1]}}),
)
_NESTING = 300


def damaged_bytes(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four edits: bits flipped, numbers at their ends, parts cut, doubled, or taken from another file."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(result) + 1)
        length = min(len(result) - place, 1 << rng.randrange(10))
        match rng.randrange(7):
            case 0:
                result = result[:place]
            case 1:
                del result[place : place + length]
            case 2:
                result[place:place] = result[place : place + length]
            case 3 if other:
                start = rng.randrange(len(other))
                result[place : place + length] = other[start : start + length]
            case 4:
                value = rng.choice(_NUMBERS)
                result[place : place + len(value)] = value
            case 5:
                result[place : place + 4] = rng.randbytes(4)
            case _:
                if place < len(result):
                    result[place] ^= 1 << rng.randrange(8)
    return bytes(result)


def damaged_document(document: Any, rng: random.Random) -> Any:
    """A copy in which one to three values, anywhere, are hostile ones, gone, or somebody else's."""
    result = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(result))
        if not places:
            return hostile_value(rng)
        holder, key = rng.choice(places)
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1:
                other_holder, other_key = rng.choice(places)
                holder[key] = copy.deepcopy(other_holder[other_key])
            case 2 if isinstance(holder, dict):
                holder[str(hostile_value(rng))[:50]] = holder.pop(key)
            case _:
                holder[key] = hostile_value(rng)
    return result


def hostile_value(rng: random.Random) -> Any:
    """A value that some reader does not expect."""
    if rng.randrange(20) == 0:
        nested: Any = []
        for _ in range(_NESTING):
            nested = [nested]
        return nested
    return copy.deepcopy(rng.choice(_VALUES))


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with hostile values in it, or damaged bytes."""
    if rng.randrange(4) == 0:
        return damaged_bytes(data, rng)
    return json.dumps(damaged_document(json.loads(data), rng)).encode()


def damaged_toml(data: bytes, rng: random.Random) -> bytes:
    """A TOML file with hostile values in it, or damaged bytes."""
    if rng.randrange(3) == 0:
        return damaged_bytes(data, rng)
    document = damaged_document(tomllib.loads(data.decode()), rng)
    if not isinstance(document, dict):
        return _toml(document).encode("utf-8", "replace")
    lines = list[str]()
    # Values first: what follows a table's head belongs to it.
    for key, value in sorted(document.items(), key=lambda item: isinstance(item[1], dict)):
        table = isinstance(value, dict)
        lines.append(f"[{json.dumps(key)}]" if table else f"{json.dumps(key)} = {_toml(value)}")
        lines += [f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()] if table else []
    return "\n".join(lines).encode()


def _toml(value: Any) -> str:
    """A value as TOML spells it; None, which it has not, as null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def damaged_torch_file(data: bytes, rng: random.Random) -> bytes:
    """A file of torch.save with hostile values or tensors in it, or damaged bytes."""
    if rng.randrange(3) == 0:
        return damaged_bytes(data, rng)
    import torch

    document = torch.load(io.BytesIO(data), weights_only=True)
    result = damaged_document(document, rng)
    for holder, key in list(_places(result)):
        if isinstance(holder[key], torch.Tensor) and rng.randrange(20) == 0:
            holder[key] = _hostile_tensor(holder[key], rng)
    if rng.randrange(6) == 0 and (places := list(_places(result))):
        holder, key = rng.choice(places)
        holder[key] = _repeated(holder[key], rng.randrange(1, 60))
    written = io.BytesIO()
    try:
        torch.save(result, written)
    except RecursionError:  # nested too deep to be written
        return damaged_bytes(data, rng)
    return written.getvalue()


def _repeated(value: Any, times: int) -> Any:
    """A value 2^times times, in a few bytes: a pickle names what it holds already."""
    for _ in range(times):
        value = {"a": value, "b": value} if isinstance(value, dict) else [value, value]
    return value


def _hostile_tensor(tensor: Any, rng: random.Random) -> Any:
    import torch

    kinds = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8)
    match rng.randrange(6):
        case 0:
            return tensor.to(rng.choice(kinds))
        case 1:
            return tensor.flatten()
        case 2:
            return tensor[None]
        case 3:
            return torch.full_like(tensor.float(), rng.choice([math.nan, math.inf, -1e38, 0.0]))
        case 4:
            # A view that claims a million times the memory it has.
            return torch.zeros(1).expand(1000, 1000)
        case _:
            return torch.zeros(0)


def _places(value: Any) -> Any:
    """Every (holder, key) within a document."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, child in items:
        yield value, key
        yield from _places(child)
