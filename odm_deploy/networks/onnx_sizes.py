"""ONNX operators on sizes: the arithmetic that exporters make of a network's view, pad and interpolate."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from odm_deploy.networks.onnx_values import Attributes, Sizes, ceil, divided, each, floor, integers, sizes

_INTEGER_TYPES = (2, 3, 4, 5, 6, 7, 12, 13)


def _cast(value: Any, to: int) -> Any:
    if to in _INTEGER_TYPES:
        return torch.sym_int(value)
    return bool(value) if to == 9 else torch.sym_float(value)


def _axes(attributes: Attributes, inputs: list[Sizes], index: int = 1) -> list[int] | None:
    if "axes" in attributes:
        return list(attributes["axes"])
    return integers(inputs[index]) if len(inputs) > index else None


def _slice(inputs: list[Sizes], attributes: Attributes) -> Sizes:
    data = inputs[0]
    starts = list(attributes["starts"]) if "starts" in attributes else integers(inputs[1])
    ends = list(attributes["ends"]) if "ends" in attributes else integers(inputs[2])
    axes = _axes(attributes, inputs, 3) or list(range(len(starts)))
    steps = integers(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # The smallest int64 stands for "through the first element".
        last = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, last, step)
    return data[tuple(index)]


def _reduce(function: Callable[[Any, Any], Any]) -> Callable[[list[Sizes], Attributes], Sizes]:
    def run(inputs: list[Sizes], attributes: Attributes) -> Sizes:
        result = inputs[0].reshape(-1)[0]
        for value in inputs[0].reshape(-1)[1:]:
            result = function(result, value)
        return sizes([result] if attributes.get("keepdims", 1) and inputs[0].ndim else result)

    return run


def _both(function: Callable[[Any, Any], Any]) -> Callable[[list[Sizes], Attributes], Sizes]:
    return lambda inputs, _: each(function, *inputs)


def _one(function: Callable[[Any], Any]) -> Callable[[list[Sizes], Attributes], Sizes]:
    return lambda inputs, _: each(function, inputs[0])


def _unsqueeze(inputs: list[Sizes], attributes: Attributes) -> Sizes:
    result = inputs[0]
    for axis in sorted(_axes(attributes, inputs) or [0]):
        result = np.expand_dims(result, axis)
    return result


def _reshape(inputs: list[Sizes], _: Attributes) -> Sizes:
    shape = [inputs[0].shape[index] if size == 0 else size for index, size in enumerate(integers(inputs[1]))]
    return inputs[0].reshape(shape)


def _squeeze(inputs: list[Sizes], attributes: Attributes) -> Sizes:
    axes = _axes(attributes, inputs)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


SIZE_OPERATORS: dict[str, Callable[[list[Sizes], Attributes], Sizes]] = {
    "Add": _both(operator.add),
    "Sub": _both(operator.sub),
    "Mul": _both(operator.mul),
    "Div": _both(divided),
    "Mod": _both(operator.mod),
    "Pow": _both(operator.pow),
    "Max": _both(torch.sym_max),
    "Min": _both(torch.sym_min),
    "Equal": _both(operator.eq),
    "Greater": _both(operator.gt),
    "GreaterOrEqual": _both(operator.ge),
    "Less": _both(operator.lt),
    "LessOrEqual": _both(operator.le),
    "And": _both(operator.and_),
    "Or": _both(operator.or_),
    "Not": _one(torch.sym_not),
    "Neg": _one(operator.neg),
    "Abs": _one(abs),
    "Floor": _one(floor),
    "Ceil": _one(ceil),
    "Identity": lambda inputs, _: inputs[0],
    "Cast": lambda inputs, attributes: each(lambda value: _cast(value, attributes["to"]), inputs[0]),
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "Flatten": lambda inputs, _: inputs[0].reshape(1, -1),
    "Gather": lambda inputs, attributes: sizes(
        np.take(inputs[0], inputs[1].astype(np.int64), attributes.get("axis", 0))
    ),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
    "ReduceMax": _reduce(torch.sym_max),
    "ReduceMin": _reduce(torch.sym_min),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, _: each(lambda c, a, b: a if c else b, *inputs),
}
"""What each operator makes of sizes; the first output."""
