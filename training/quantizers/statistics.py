"""Order statistics of large tensors, as ranges are initialised from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SAMPLES = 1 << 20


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
    low = values.kthvalue(below + 1, dim=1).values
    if position == below:
        return low
    high = values.kthvalue(below + 2, dim=1).values
    return torch.lerp(low, high, position - below)


def thin(values: Tensor, limit: int = MAX_SAMPLES) -> Tensor:
    """At most about `limit` of the values, evenly spaced, flattened. An odd stride never follows rows."""
    flat = values.detach().flatten()
    stride = max(1, math.ceil(flat.numel() / limit)) | 1
    return flat[::stride] if flat.numel() > limit else flat
