"""Pooling to a size that is computed from the image's, in operations that a trace can follow at every size.

PyTorch's own operators take numbers, so a trace holds the example's: SAFMN (Sun et al., ICCV 2023) and its heirs pool
to an eighth of the image, whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode

Reduction = Callable[[Tensor, Tensor], Tensor]
"""[N, C, windows, K] and which of the K belong to each window [windows, K] -> [N, C, windows, 1]."""


_MAP_RANK = 4


class SizesFromImages(TorchFunctionMode):
    """While this lasts, adaptive pooling to a size of the image's own gives what PyTorch's gives, at any size."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reduce = _REDUCTIONS.get(getattr(func, "__name__", ""))
        if reduce is None or kwargs.get("return_indices"):
            return func(*args, **kwargs)
        x, sizes = (*args, *(kwargs[name] for name in ("input", "output_size") if name in kwargs))[:2]
        known = not isinstance(sizes, (tuple, list)) or not any(isinstance(size, SymInt) for size in sizes)
        if known or x.dim() != _MAP_RANK:
            return func(*args, **kwargs)
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


_REDUCTIONS: dict[str, Reduction] = {"adaptive_max_pool2d": largest, "adaptive_avg_pool2d": mean}
