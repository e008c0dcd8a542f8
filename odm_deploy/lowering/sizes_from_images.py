"""Functions of PyTorch that a trace or the exporter would hold at the example's size, or make another function of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odm_deploy.lowering.pooling import REDUCTIONS, adaptive, averaged, largest_of_windows
from odm_deploy.lowering.resizing import resized


class SizesFromImages(TorchFunctionMode):
    """While this lasts, these functions give what PyTorch's do, at any size of an image."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in REDUCTIONS:
            return adaptive(func, REDUCTIONS[name], *args, **kwargs)
        written = _WRITTEN.get(name)
        return func(*args, **kwargs) if written is None else written(func, *args, **kwargs)


def _linspace(function: Callable[..., Tensor], start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """PyTorch's `linspace`, which counts from the nearer end, of a number of steps that is a size of the image."""
    if isinstance(steps, int) or options.get("out") is not None:
        return function(start, end, steps, **options)
    dtype = options.get("dtype") or torch.get_default_dtype()
    index = torch.arange(steps, device=options.get("device")).to(dtype)
    last = index[-1:]
    step = (end - start) / last.clamp(min=1.0)
    return torch.where(index < torch.floor((last + 1.0) / 2.0), start + index * step, end - (last - index) * step)


def _padded(
    function: Callable[..., Tensor],
    input: Tensor,  # PyTorch's name  # noqa: A002
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    """PyTorch's `pad`; around an edge by joining parts, since OpenVINO 2026.4 knows no such padding."""
    if mode != "circular" or not all(isinstance(each, int) and each >= 0 for each in pad):
        return function(input, pad, mode, value)
    x = input
    for index in range(len(pad) // 2):
        before, after = pad[2 * index : 2 * index + 2]
        axis, length = x.dim() - 1 - index, x.shape[-1 - index]
        last = [x.narrow(axis, length - before, before)] if before else []
        first = [x.narrow(axis, 0, after)] if after else []
        x = torch.cat([*last, x, *first], axis)
    return x


def _rolled(
    function: Callable[..., Tensor],
    input: Tensor,  # PyTorch's name  # noqa: A002
    shifts: Any,
    dims: Any = None,
) -> Tensor:
    """PyTorch's `roll`, whose shifts the exporter takes as numbers only; by joining parts where they are computed."""
    numbers = shifts if isinstance(shifts, (tuple, list)) else (shifts,)
    axes = dims if isinstance(dims, (tuple, list)) else (dims,)
    if dims is None or all(isinstance(shift, int) for shift in numbers):
        return function(input, shifts, dims)
    x = input
    for shift, axis in zip(numbers, axes, strict=True):
        moved = shift % x.shape[axis]
        stays = x.shape[axis] - moved
        x = torch.cat([x.narrow(axis, stays, moved), x.narrow(axis, 0, stays)], axis)
    return x


_WRITTEN: dict[str, Callable[..., Tensor]] = {
    "interpolate": resized,
    "linspace": _linspace,
    "avg_pool1d": averaged,
    "avg_pool2d": averaged,
    "max_pool1d": largest_of_windows,
    "max_pool2d": largest_of_windows,
    "pad": _padded,
    "roll": _rolled,
}
