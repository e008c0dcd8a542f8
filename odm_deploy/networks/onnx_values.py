"""The two kinds of values in an ONNX graph that runs in torch: tensors, and sizes.

Sizes, and what is computed from them, are no tensors: they are numpy arrays of Python numbers (dtype object), which
torch.export replaces by symbols. So a graph that divides, rounds up and reshapes by its own height keeps doing that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odm_deploy.errors import InputError

Sizes = np.ndarray[Any, np.dtype[np.object_]]
Value = Tensor | Sizes | None
Attributes = Mapping[str, Any]
"""Of a node, by name."""


def text(value: str | bytes) -> str:
    """An attribute that is a word; ONNX has bytes."""
    return value.decode() if isinstance(value, bytes) else value


def sizes(values: Any) -> Sizes:
    """An array of Python numbers."""
    array = np.empty(np.shape(values), object)
    array[...] = values
    return array


def as_sizes(value: Value) -> Sizes:
    """A value that steers the computation: a shape, indices, amounts of padding.

    Raises:
        InputError: it is computed from pixels.
    """
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        return sizes([])
    if torch.compiler.is_exporting() or value.numel() > 2**16:
        raise InputError("the ONNX graph cannot be converted", why="a shape depends on the values of a tensor")
    return sizes(value.tolist())


def integers(value: Value) -> list[int]:
    """Sizes as a flat list."""
    return list(as_sizes(value).reshape(-1))


def as_tensor(value: Value, like: Tensor) -> Tensor | float:
    """A value that takes part in arithmetic with the tensor `like`."""
    if isinstance(value, Tensor):
        return value
    if value is None or value.size == 0:
        raise InputError("the ONNX graph cannot be converted", why="an operand is missing")
    if value.size == 1:
        return value.reshape(-1)[0]
    return torch.tensor(value.tolist(), dtype=like.dtype, device=like.device)


def divided(a: Any, b: Any) -> Any:
    """Division as ONNX does it: whole numbers are cut towards zero, which for sizes is down."""
    whole = not isinstance(a, (float, torch.SymFloat)) and not isinstance(b, (float, torch.SymFloat))
    return a // b if whole else a / b


def floor(a: Any) -> Any:
    """Down to a whole number, as a float, which ONNX keeps it."""
    return torch.sym_float(math.floor(a)) if isinstance(a, (float, torch.SymFloat)) else a


def ceil(a: Any) -> Any:
    """Up to a whole number, as a float."""
    return torch.sym_float(math.ceil(a)) if isinstance(a, (float, torch.SymFloat)) else a


def each(function: Any, *arrays: Sizes) -> Sizes:
    """A function of numbers applied to arrays of them."""
    return sizes(np.frompyfunc(function, len(arrays), 1)(*arrays))
