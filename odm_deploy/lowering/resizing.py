"""PyTorch's `interpolate`, in operations that give the same at every image size and on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odm_deploy.lowering.pooling import mean, pooled_to

_MAP_RANK = 4
_POWER_OF_TWO = 0.5
"""Of one, the number in front of the power."""
_LARGEST_DENOMINATOR, _LONGEST_PX = 1000, 1 << 14
"""Factors are taken for fractions of such numbers where that is the same for lengths up to this."""


def resized(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What PyTorch's `interpolate` gives; that of the exporter where it is the same."""
    given = signature(function).bind(*args, **kwargs).arguments
    x = given.pop("input")
    if x.dim() == _MAP_RANK:
        if given.get("mode") == "area":
            return pooled_to(x, _sizes(x, **given), mean)
        if given.get("antialias"):
            return _antialiased(x, **given)
        if given.get("mode", "nearest") in ("nearest", "nearest-exact"):
            return _nearest(function, x, **given)
    return function(*args, **kwargs)


def _antialiased(x: Tensor, mode: str, **given: Any) -> Tensor:
    """What PyTorch's `interpolate` gives with `antialias`, as products with weights that the sizes give.

    ONNX's Resize has another scale where sizes are not whole multiples, and OpenVINO 2026.4 leaves antialiasing out.
    """
    known = not given.get("recompute_scale_factor") and given.get("size") is None
    factors = _pair(given["scale_factor"]) if known else (None, None)
    for axis, size, factor in zip((-2, -1), _sizes(x, **given), factors, strict=True):
        x = x.transpose(axis, -1)
        length, ends = x.shape[-1], 1 if given.get("align_corners") else 0
        step = 1.0 / factor if factor and not ends else (length - ends) / (size - ends)
        centers = (torch.arange(size, device=x.device) + 0.5) * step
        reach = (torch.arange(length, device=x.device) + 0.5 - centers[:, None]) / torch.sym_max(step, 1.0)
        weights = _KERNELS[mode](reach.abs())
        x = (x @ (weights / weights.sum(1, keepdim=True)).T.to(x.dtype)).transpose(axis, -1)
    return x


def _nearest(function: Callable[..., Tensor], x: Tensor, mode: str = "nearest", **given: Any) -> Tensor:
    """What PyTorch's `interpolate` gives of the nearest values, which it finds by products with float32 of 1 / factor.

    Where a place lies between two values, as one of 17 does at a factor of 1.7, rounding decides. Runtimes and the
    exporter divide by the factor, and take the other one.
    """
    known = not given.get("recompute_scale_factor") and given.get("size") is None
    factors = [float(factor) for factor in _pair(given["scale_factor"])] if known else []
    if known and all(factor.is_integer() for factor in factors):
        # Both modes are the same then.
        return function(x, mode="nearest", **given)
    if mode == "nearest" and all(np.frexp(factor)[0] == _POWER_OF_TWO for factor in factors):
        return function(x, mode=mode, **given)
    for axis, size in zip((-2, -1), _sizes(x, **given), strict=True):
        length = x.shape[axis]
        step = float(np.float32(1.0 / factors[axis])) if known else length / size
        # Halves are counted in whole numbers: OpenVINO 2026.4 multiplies what is added apart, and rounds once more.
        halves = torch.arange(size, device=x.device) * 2 + (mode == "nearest-exact")
        index = torch.floor(halves.float() * (step / 2.0)).to(torch.int64)
        x = x.index_select(axis, torch.minimum(index, torch.full_like(index, length - 1)))
    return x


def _triangle(distance: Tensor) -> Tensor:
    return (1.0 - distance).clamp(min=0.0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys (1981), with a = -1/2."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, far * (distance < 2.0))


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


def _pair(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (tuple, list)) else (values, values)


def _sizes(x: Tensor, size: Any = None, scale_factor: Any = None, **_others: Any) -> tuple[Any, ...]:
    """Height and width of what PyTorch's `interpolate` gives."""
    if size is not None:
        return _pair(size)
    factors = zip(x.shape[2:], _pair(scale_factor), strict=True)
    return tuple(_times(length, float(factor)) for length, factor in factors)


def _times(length: Any, factor: float) -> Any:
    """`length` times `factor` without its fraction; of a graph, where float32 would come to less, in whole numbers."""
    ratio = Fraction(factor).limit_denominator(_LARGEST_DENOMINATOR)
    lengths = np.arange(1, _LONGEST_PX)
    if ((lengths * factor).astype(np.int64) == lengths * ratio.numerator // ratio.denominator).all():
        return length * ratio.numerator // ratio.denominator
    return torch.sym_int(length * factor)
