"""Pooling to a given size, in operations that a trace can follow at every size of the image.

PyTorch's own operators take numbers, so a trace holds the example's: SAFMN (Sun et al., ICCV 2023) and its heirs pool
to an eighth of the image, whatever that is. Where the number is the code's own, as in pyramids of poolings, the exporter
takes the operator apart into windows of the example's widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Reduction = Callable[[Tensor, Tensor], Tensor]
"""[N, C, windows, K] and which of the K belong to each window [windows, K] -> [N, C, windows, 1]."""


_MAP_RANK, _ROW_RANK = 4, 3


class SizesFromImages(TorchFunctionMode):
    """While this lasts, adaptive pooling gives what PyTorch's gives, at any size of the image."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "interpolate":
            given = signature(func).bind(*args, **kwargs).arguments
            if given.get("mode") != "area" or given["input"].dim() != _MAP_RANK:
                return func(*args, **kwargs)
            return _pooled_to(given["input"], _area_sizes(**given), mean)
        reduce = _REDUCTIONS.get(name)
        if reduce is None or kwargs.get("return_indices") or any(args[2:]):
            return func(*args, **kwargs)
        x, sizes = (*args, *(kwargs[name] for name in ("input", "output_size") if name in kwargs))[:2]
        rank = _ROW_RANK if name.endswith("1d") else _MAP_RANK
        sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * (rank - 2)
        # The mean or the largest of the whole map has an operator of its own.
        if x.dim() != rank or all(isinstance(size, int) and size == 1 for size in sizes):
            return func(*args, **kwargs)
        if rank == _ROW_RANK:
            return _pooled_to(x.unsqueeze(-2), (None, *sizes), reduce).squeeze(-2)
        return _pooled_to(x, sizes, reduce)


def _area_sizes(input: Tensor, size: Any = None, scale_factor: Any = None, **_others: Any) -> tuple[Any, ...]:
    """Height and width that PyTorch's `interpolate` pools to, where its mode is `area`."""
    if size is not None:
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
    return tuple(torch.sym_int(length * factor) for length, factor in zip(input.shape[2:], factors, strict=True))


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
