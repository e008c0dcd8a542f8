"""The grid's arithmetic in torch, and the two marker operators that exporting leaves in the graph.

`fake_quantize` and `dequantize_weight` are custom operators so that `torch.export` keeps each as one node, with the
layer's name and grid as attributes; the lowerings replace the nodes by what a runtime executes as integers.
(`torch.fake_quantize_*` does not survive `torch.export`, and its ONNX symbolics know 8 bits only.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from odm_deploy.grid import Grid
from odm_deploy.quantization.weights import per_output


def quantize_codes(x: Tensor, scale: float, zero_point: int, bits: int, center: float | None) -> Tensor:
    """Codes of `x` as floats (same shape): float64 for float64 input, else float32, whatever autocast says."""
    values = x if x.dtype == torch.float64 else x.float()
    if center is not None:
        values = values - center
    # A tensor, not a Python number: CUDA divides by a number by multiplying with its reciprocal, which flips codes.
    step = torch.full((), scale, dtype=values.dtype, device=values.device)
    # In place from here on: memory for features is most of what this costs.
    return (values / step).round_().add_(zero_point).clamp_(0, 2**bits - 1)


@torch.library.custom_op("odm::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: float, zero_point: int, bits: int, center: float | None, name: str) -> Tensor:
    levels = quantize_codes(x, scale, zero_point, bits, center).sub_(zero_point).mul_(scale)
    return levels if center is None else levels.add_(center)


@_fake_quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, bits: int, center: float | None, name: str) -> Tensor:
    return torch.empty_like(x, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@torch.library.custom_op("odm::dequantize_weight", mutates_args=())
def _dequantize_weight(codes: Tensor, scale: Tensor, name: str) -> Tensor:
    return codes.to(scale.dtype) * per_output(scale, codes)


@_dequantize_weight.register_fake
def _(codes: Tensor, scale: Tensor, name: str) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


def fake_quantize(x: Tensor, grid: Grid, name: str = "") -> Tensor:
    """The level of `grid` nearest to each value of `x`: float32, or float64 for float64 input; same shape.

    `name` is the layer's, dotted; the exported node keeps it.
    """
    return _fake_quantize(x, grid.scale, grid.zero_point, grid.bits, grid.center, name)


def dequantize_weight(codes: Tensor, scale: Tensor, name: str = "") -> Tensor:
    """Real weights `codes * scale`: codes int8 [O, ...], scale float32 or float64, [O] or [1], whose dtype is kept.

    `name` as in `fake_quantize`.
    """
    return _dequantize_weight(codes, scale, name)


def grid_codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes of `x` on `grid` as uint8, same shape."""
    return quantize_codes(x, grid.scale, grid.zero_point, grid.bits, grid.center).to(torch.uint8)
