"""ONNX operators that pick values by their place, or by how large they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.networks.onnx_values import Attributes, as_tensor, integers, text

FROM_THE_END = "from_the_end"
"""Attribute of a Gather some of whose many stored indices are negative."""


def _indices(value: Any, x: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value.tolist(), device=x.device)


def _gather(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 0) % inputs[0].dim()
    length = x.shape[axis]
    if isinstance(inputs[1], Tensor):
        flat = inputs[1].reshape(-1)
        if attributes.get(FROM_THE_END):
            flat = torch.where(flat < 0, flat + length, flat)
        return x.index_select(axis, flat).reshape(*x.shape[:axis], *inputs[1].shape, *x.shape[axis + 1 :])
    indices, shape = integers(inputs[1]), inputs[1].shape
    if not shape:
        return x.select(axis, indices[0])
    if min(indices, default=0) < 0 and not isinstance(length, int):
        found = torch.stack([x.select(axis, index) for index in indices], axis)
    else:
        indices = [index + length if index < 0 else index for index in indices]
        found = x.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=x.device))
    return found if len(shape) == 1 else found.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])


def _gather_elements(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, axis, index = inputs[0], attributes.get("axis", 0), _indices(inputs[1], inputs[0])
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def _gather_nd(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, index, batches = inputs[0], _indices(inputs[1], inputs[0]), attributes.get("batch_dims", 0)
    rank = index.dim() - 1
    of_batch = [
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if place == axis else 1 for place in range(rank)])
        for axis in range(batches)
    ]
    return x[(*of_batch, *index.unbind(-1))]


def _grid_sample(inputs: list[Any], attributes: Attributes) -> Tensor:
    mode = text(attributes.get("mode", "linear"))
    return F.grid_sample(
        inputs[0],
        inputs[1],
        {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
        text(attributes.get("padding_mode", "zeros")),
        bool(attributes.get("align_corners", 0)),
    )


def _top(inputs: list[Any], attributes: Attributes) -> tuple[Tensor, Tensor]:
    count, axis = integers(inputs[1])[0], attributes.get("axis", -1)
    values, indices = torch.topk(inputs[0], count, axis, bool(attributes.get("largest", 1)), True)
    return values, indices


def _place_of(function: Callable[..., Tensor]) -> Callable[[list[Any], Attributes], Tensor]:
    def run(inputs: list[Any], attributes: Attributes) -> Tensor:
        axis, keeps = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        return function(inputs[0], dim=axis, keepdim=keeps)

    return run


def _where(inputs: list[Any], _: Attributes) -> Tensor:
    # Of two constants, float32 ones where they are no single numbers.
    like = next((value for value in inputs[1:] if isinstance(value, Tensor)), torch.empty(0))
    condition = inputs[0] if isinstance(inputs[0], Tensor) else torch.tensor(inputs[0].tolist())
    return torch.where(condition, as_tensor(inputs[1], like), as_tensor(inputs[2], like))


PICKING_OPERATORS: dict[str, Callable[[list[Any], Attributes], Any]] = {
    "ArgMax": _place_of(torch.argmax),
    "ArgMin": _place_of(torch.argmin),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "GridSample": _grid_sample,
    "TopK": _top,
    "Where": _where,
}
