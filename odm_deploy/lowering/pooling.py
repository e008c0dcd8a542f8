"""PyTorch's poolings, in operations that a trace follows at every image size.

PyTorch's own operators take numbers, so a trace holds the example's: SAFMN (Sun et al., ICCV 2023) and its heirs pool
to an eighth of the image, whatever that is. Where the number is the code's own, as in pyramids of poolings, the
exporter takes the operator apart into windows of the example's widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from odm_deploy.errors import InputError

Reduction = Callable[[Tensor, Tensor], Tensor]
"""[N, C, windows, K] and which of the K belong to each window [windows, K] -> [N, C, windows, 1]."""

_MAP_RANK, _ROW_RANK = 4, 3


def adaptive(function: Callable[..., Any], reduce: Reduction, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's `adaptive_avg_pool1d` to `adaptive_max_pool2d`; `function` itself where a trace follows it."""
    if kwargs.get("return_indices") or any(args[2:]):
        return function(*args, **kwargs)
    x, sizes = (*args, *(kwargs[name] for name in ("input", "output_size") if name in kwargs))[:2]
    rank = _ROW_RANK if function.__name__.endswith("1d") else _MAP_RANK
    sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * (rank - 2)
    whole = all(isinstance(size, int) and size == 1 for size in sizes)
    if x.dim() == rank and whole and reduce is mean:
        # PyTorch gives the mean the order of `x` in memory, which a trace holds as a Gather of fixed size.
        return x.mean(tuple(range(2 - rank, 0)), keepdim=True)
    # The largest of the whole map has an operator of its own.
    if x.dim() != rank or whole:
        return function(*args, **kwargs)
    if rank == _ROW_RANK:
        return pooled_to(x.unsqueeze(-2), (None, *sizes), reduce).squeeze(-2)
    return pooled_to(x, sizes, reduce)


def averaged(
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
        height, width = _along(function, kernel_size)
        return function(input, kernel_size, stride, padding) * (height * width / divisor_override)
    x, pads = input, padding
    if ceil_mode and count_include_pad:
        around = [size for each in reversed(_along(function, padding)) for size in (each, each)]
        x, pads = functional.pad(input, around), 0
    result = function(x, kernel_size, stride, pads, ceil_mode, count_include_pad)
    return _begun_inside(function, result, input, kernel_size, stride, padding) if ceil_mode else result


def largest_of_windows(
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


def pooled_to(x: Tensor, sizes: Sequence[Any], reduce: Reduction) -> Tensor:
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


REDUCTIONS: dict[str, Reduction] = {
    f"adaptive_{kind}_pool{axes}d": reduce for kind, reduce in (("max", largest), ("avg", mean)) for axes in (1, 2)
}
"""Adaptive poolings by name."""
