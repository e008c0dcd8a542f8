"""numpy's arrays and numbers in torch files of strangers, of which only those of numbers are taken.

numpy's own functions would be handed a stranger's bytes, objects and sizes. So what a pickle calls by their names is
here, and takes types by their code, shapes and bytes that agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")
_SHORT = 64
"""Bytes."""
_DTYPE_VERSION, _ARRAY_VERSION = 3, 1
"""Of how numpy pickles them, since long before it was 1.0."""


class NotNumbersError(Exception):
    """A pickle holds of numpy's what is no array of numbers, or one that contradicts itself."""


class _Kind:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise NotNumbersError(f"it holds numpy's values of type {code!r:.40}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        version, order, *parts = state
        if version != _DTYPE_VERSION or order not in ("<", ">", "=", "|") or any(part for part in parts[:3]):
            raise NotNumbersError("it holds numpy's values of a type of several parts")
        if not self.dtype.newbyteorder(order).isnative:
            raise NotNumbersError("it holds numpy's numbers in the byte order of another machine")


class StoredArray:
    """Stands for `numpy.ndarray`."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, by_columns, data = state
        if version != _ARRAY_VERSION or not isinstance(kind, _Kind) or not isinstance(data, bytes):
            raise NotNumbersError("it holds an array of numpy's that is not one of numbers")
        self.array = _array(kind, shape, data, "F" if by_columns else "C")

    @cached_property
    def tensor(self) -> Tensor:
        """The same numbers as a tensor, in the same memory: many arrays may be made of the same bytes."""
        if self.array is None:
            raise NotNumbersError("it holds an array of numpy's without numbers")
        # Of the shortest bytes, Python has one of each for everybody.
        return torch.from_numpy(self.array if self.array.nbytes > _SHORT else self.array.copy())


def _array(kind: Any, shape: Any, data: bytes, order: Any) -> NDArray[Any]:
    wanted = math.prod(shape) * kind.dtype.itemsize
    if len(data) != wanted or min(shape, default=0) < 0:
        raise NotNumbersError(f"it holds an array of shape {list(shape)!s:.60}, stored as {len(data)} bytes")
    return np.ndarray(shape, kind.dtype, data, order=order)


def _new_array(*_: Any) -> StoredArray:
    """Stands for numpy's `_reconstruct`, whose arguments say nothing: what the array is comes after it."""
    return StoredArray()


def _number(kind: Any, data: Any) -> Any:
    """Stands for numpy's `scalar`: a number of Python's."""
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise NotNumbersError("it holds a value of numpy's that is no number")
    return _array(kind, (), data, "C").item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for `codecs.encode`, by which pickles of old protocols spell bytes."""
    if encoding != "latin1":
        raise NotNumbersError(f"it holds text to be encoded as {encoding!r:.40}")
    return cast("str", text).encode("latin1")


def _no_bytes() -> bytes:
    """Stands for `bytes`, by which they spell none."""
    return b""


SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *[(StoredArray, "numpy.ndarray"), (_Kind, "numpy.dtype"), (_encoded, "_codecs.encode")],
    *[(_no_bytes, "__builtin__.bytes"), (_no_bytes, "builtins.bytes")],
]
"""What stands for which name; for `torch.serialization.safe_globals`."""


def with_tensors(content: Any) -> Any:
    """What a pickle held, with tensors in place of arrays in mappings and lists, which are changed.

    Raises:
        NotNumbersError: one of them was never given its numbers.
    """
    if isinstance(content, StoredArray):
        return content.tensor
    seen, waiting = set[int](), [content]
    while waiting:
        holder = waiting.pop()
        if not isinstance(holder, (dict, list, tuple)) or id(holder) in seen:
            continue
        seen.add(id(holder))
        places: Any = list(holder.items() if isinstance(holder, dict) else enumerate(holder))
        for place, value in places:
            if not isinstance(value, StoredArray):
                waiting.append(value)
            elif not isinstance(holder, tuple):
                holder[place] = value.tensor
    return content
