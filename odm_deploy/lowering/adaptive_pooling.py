"""Pooling to a given size, antialiased resizing and `linspace`, in operations that a trace follows at every image size.

And what else the exporter would make another function of.

PyTorch's own operators take numbers, so a trace holds the example's: SAFMN (Sun et al., ICCV 2023) and its heirs pool
to an eighth of the image, whatever that is. Where the number is the code's own, as in pyramids of poolings, the
exporter takes the operator apart into windows of the example's widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from odm_deploy.errors import InputError

Reduction = Callable[[Tensor, Tensor], Tensor]
"""[N, C, windows, K] and which of the K belong to each window [windows, K] -> [N, C, windows, 1]."""


_MAP_RANK, _ROW_RANK = 4, 3
_POWER_OF_TWO = 0.5
"""Of one, the number in front of the power."""
_LARGEST_DENOMINATOR, _LONGEST_PX = 1000, 1 << 14
"""Factors are taken for fractions of such numbers where that is the same for lengths up to this."""


class SizesFromImages(TorchFunctionMode):
    """While this lasts, these functions give what PyTorch's do, at any size of an image."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "interpolate":
            given = signature(func).bind(*args, **kwargs).arguments
            x = given.pop("input")
            if x.dim() == _MAP_RANK and given.get("mode") == "area":
                return _pooled_to(x, _sizes(x, **given), mean)
            if x.dim() == _MAP_RANK and given.get("antialias"):
                return _antialiased(x, **given)
            if x.dim() == _MAP_RANK and given.get("mode", "nearest") in ("nearest", "nearest-exact"):
                return _nearest(func, x, **given)
            return func(*args, **kwargs)
        if name == "linspace":
            return _linspace(func, *args, **kwargs)
        if name in ("avg_pool1d", "avg_pool2d"):
            return _averaged(func, *args, **kwargs)
        if name in ("max_pool1d", "max_pool2d"):
            return _largest_of_windows(func, *args, **kwargs)
        reduce = _REDUCTIONS.get(name)
        if reduce is None or kwargs.get("return_indices") or any(args[2:]):
            return func(*args, **kwargs)
        x, sizes = (*args, *(kwargs[name] for name in ("input", "output_size") if name in kwargs))[:2]
        rank = _ROW_RANK if name.endswith("1d") else _MAP_RANK
        sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * (rank - 2)
        whole = all(isinstance(size, int) and size == 1 for size in sizes)
        if x.dim() == rank and whole and reduce is mean:
            # PyTorch gives the mean the order of `x` in memory, which a trace holds as a Gather of fixed size.
            return x.mean(tuple(range(2 - rank, 0)), keepdim=True)
        # The largest of the whole map has an operator of its own.
        if x.dim() != rank or whole:
            return func(*args, **kwargs)
        if rank == _ROW_RANK:
            return _pooled_to(x.unsqueeze(-2), (None, *sizes), reduce).squeeze(-2)
        return _pooled_to(x, sizes, reduce)


def _linspace(function: Callable[..., Tensor], start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """PyTorch's `linspace`, which counts from the nearer end, of a number of steps that is a size of the image."""
    if isinstance(steps, int) or options.get("out") is not None:
        return function(start, end, steps, **options)
    dtype = options.get("dtype") or torch.get_default_dtype()
    index = torch.arange(steps, device=options.get("device")).to(dtype)
    last = index[-1:]
    step = (end - start) / last.clamp(min=1.0)
    return torch.where(index < torch.floor((last + 1.0) / 2.0), start + index * step, end - (last - index) * step)


def _averaged(
    function: Callable[..., Tensor],
    input: Tensor,  # PyTorch's name  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """PyTorch's `avg_pool1d` and `avg_pool2d`, whose padding stands apart where windows may reach beyond it.

    There OpenVINO 2026.4 divides by what lies in the image instead of by what lies in the image and its padding. And
    the exporter leaves out a divisor that is not the window's size, without a word.
    """
    if ceil_mode and divisor_override is not None:
        raise InputError(
            "avg_pool2d cannot be exported", why="with ceil_mode and divisor_override", fix="leave one of them out"
        )
    if divisor_override is not None:
        height, width = _pair(kernel_size)
        return function(input, kernel_size, stride, padding) * (height * width / divisor_override)
    x, pads = input, padding
    if ceil_mode and count_include_pad:
        around = [size for each in reversed(_along(function, padding)) for size in (each, each)]
        x, pads = functional.pad(input, around), 0
    result = function(x, kernel_size, stride, pads, ceil_mode, count_include_pad)
    return _begun_inside(function, result, input, kernel_size, stride, padding) if ceil_mode else result


def _largest_of_windows(
    function: Callable[..., Tensor],
    input: Tensor,  # PyTorch's name  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **others: Any,
) -> Tensor:
    """PyTorch's `max_pool1d` and `max_pool2d`; OpenVINO 2026.4 also has windows that begin behind the image."""
    step = {"stride": stride} if stride else {}
    result = function(input, kernel_size, padding=padding, dilation=dilation, ceil_mode=ceil_mode, **step, **others)
    if not ceil_mode:
        return result
    return _begun_inside(function, result, input, kernel_size, stride, padding, dilation)


def _begun_inside(
    function: Callable[..., Tensor],
    result: Tensor,
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
) -> Tensor:
    """Of what `function` pooled, what PyTorch keeps: a last window has to begin in the image or in front of it."""
    settings = (kernel_size, stride or kernel_size, padding, dilation)
    for back, (size, step, pad, apart) in enumerate(zip(*(_along(function, each) for each in settings), strict=True)):
        axis = back - len(_along(function, 0))
        length, reach = x.shape[axis], apart * (size - 1) + 1
        if step > reach - pad:
            windows: Any = torch.sym_min((length + 2 * pad - reach - 1) // step + 2, (length + pad - 1) // step + 1)
            result = result.narrow(axis, 0, windows)
    return result


def _along(function: Callable[..., Tensor], values: Any) -> tuple[Any, ...]:
    """What a pooling `function` is told for each axis."""
    axes = 1 if function.__name__.endswith("1d") else 2
    values = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    return values if len(values) == axes else values * axes


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


def _pooled_to(x: Tensor, sizes: Sequence[Any], reduce: Reduction) -> Tensor:
    """`x`, [N, C, H, W], pooled to a height and a width; None keeps what is."""
    for axis, size in zip((-2, -1), sizes, strict=True):
        if size is not None:
            x = pooled(x, axis, size, reduce)
    return x


def pooled(x: Tensor, axis: int, count: Any, reduce: Reduction) -> Tensor:
    """`x`, [N, C, H, W], its last or last but one axis reduced to `count` windows, as PyTorch has them.

    Of n values, window i has those from floor(i n / count) to ceil((i + 1) n / count).
    """
    x = x.transpose(axis, -1)
    others, length = x.shape[-2:]
    window = torch.arange(count, device=x.device)
    first, end = window * length // count, ((window + 1) * length + count - 1) // count
    # As many as the widest has.
    steps = torch.arange(length // count + 2, device=x.device)
    places = torch.minimum(first[:, None] + steps, end[:, None] - 1)
    inside = (first[:, None] + steps < end[:, None]).repeat(others, 1)
    # Four axes, or OpenVINO 2026.4 takes another one for the channels in what it fuses with the reduction.
    values = x.index_select(-1, places.flatten()).unflatten(-1, (-1, steps.shape[0])).flatten(2, 3)
    return reduce(values, inside).flatten(2).unflatten(-1, (others, count)).transpose(axis, -1)


def largest(values: Tensor, inside: Tensor) -> Tensor:
    """The largest value of each window."""
    # Places behind a window's end are its last one again.
    return values.amax(-1, keepdim=True)


def mean(values: Tensor, inside: Tensor) -> Tensor:
    """The mean of each window's own."""
    weights = inside.to(values.dtype)
    return (values * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)


_REDUCTIONS: dict[str, Reduction] = {
    f"adaptive_{kind}_pool{axes}d": reduce for kind, reduce in (("max", largest), ("avg", mean)) for axes in (1, 2)
}
