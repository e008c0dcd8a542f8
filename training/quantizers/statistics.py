"""Order statistics of large tensors, as ranges are initialised from them."""

from __future__ import annotations

import math

from torch import Tensor

MAX_SAMPLES = 1 << 20
_LONG_ROW = 4096


def percentile(values: Tensor, percent: float) -> Tensor:
    """The percentile of all of `values`, linearly interpolated like numpy's default; float32 [].

    `torch.quantile` sorts and refuses more than 16 million values; two selections need neither.
    """
    return row_percentile(values.reshape(1, -1), percent)[0]


def row_percentile(values: Tensor, percent: float) -> Tensor:
    """The percentile of each row of `values` [R, K]; float32 [R]."""
    values = values.detach().float()
    position = (values.shape[1] - 1) * percent / 100.0
    below = math.floor(position)
    wanted = [below] if position == below else [below, below + 1]
    low, *high = _in_order(values, wanted, on_gpu=values.is_cuda)
    # One operation after the other: `torch.lerp` rounds differently on CPUs, on GPUs and where it is compiled.
    return low + (high[0] - low) * (position - below) if high else low


def _in_order(values: Tensor, wanted: list[int], *, on_gpu: bool) -> list[Tensor]:
    """The values at the 0-based, ascending ranks `wanted` of each row of `values` [R, K]: float32 [R] each.

    A GPU selects with one block a row, which takes a long row longer than sorting it with all blocks; it looks for the
    largest few with all blocks, too.
    """
    if not on_gpu or values.shape[1] <= _LONG_ROW:
        return [values.kthvalue(rank + 1, dim=1).values for rank in wanted]
    from_the_top = values.shape[1] - wanted[0]
    if from_the_top <= _LONG_ROW:
        largest = values.topk(from_the_top, dim=1).values
        return [largest[:, values.shape[1] - 1 - rank] for rank in wanted]
    ordered = values.sort(dim=1).values
    return [ordered[:, rank] for rank in wanted]


def thin(values: Tensor, limit: int = MAX_SAMPLES) -> Tensor:
    """At most about `limit` of the values, evenly spaced, flattened. An odd stride never follows rows."""
    flat = values.detach().flatten()
    stride = max(1, math.ceil(flat.numel() / limit)) | 1
    return flat[::stride] if flat.numel() > limit else flat
