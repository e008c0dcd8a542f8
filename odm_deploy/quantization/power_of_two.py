"""Numbers with few binary digits: what the scales, biases and slopes of an exact model are made of.

A *dyadic* number is an integer times a power of two. Sums and products of dyadic numbers are dyadic again, and float32
holds them exactly as long as the integer stays below 2^24. `exact.bounds` shows that it does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOAT32_BITS = 24
"""Significant bits of a float32: whole numbers below 2^24 are exact, and so are their sums."""


def nearest_power_of_two(values: Tensor) -> Tensor:
    """The power of two nearest to each value (> 0) on a logarithmic scale; same shape and dtype."""
    return torch.exp2(torch.round(torch.log2(values.double()))).to(values.dtype)


def scale_near_power_of_two(scale: Tensor, nearness: Tensor | None) -> Tensor:
    """The power of two nearest to each scale, or, with `nearness` below 1, part of the way there.

    Args:
        scale: > 0, any shape.
        nearness: [] in [0, 1], on a logarithmic scale; 0 leaves scales alone. None: 1.
    """
    if nearness is None:
        return nearest_power_of_two(scale)
    exponent = torch.log2(scale.double())
    return torch.exp2(torch.lerp(exponent, torch.round(exponent), nearness.double())).to(scale.dtype)


def round_to_multiples(values: Tensor, unit: Tensor | float) -> Tensor:
    """The multiple of `unit` nearest to each value, ties to even; in the dtype of `values`.

    Computed in float64, so that a dyadic unit gives an exact multiple wherever the dtype can hold it.
    """
    unit = torch.as_tensor(unit, dtype=torch.float64, device=values.device)
    return (torch.round(values.double() / unit) * unit).to(values.dtype)


def as_integer(value: float) -> tuple[int, int]:
    """(n, e) with `value` = n * 2^e exactly and n odd; (0, 0) for zero."""
    if value == 0.0:
        return 0, 0
    numerator, denominator = float(value).as_integer_ratio()
    zeros = (numerator & -numerator).bit_length() - 1
    return numerator >> zeros, zeros - (denominator.bit_length() - 1)


def common_exponent(values: NDArray[np.floating]) -> int:
    """The largest e for which every value is an integer multiple of 2^e; 0 where all are zero."""
    exponents = [as_integer(float(value))[1] for value in values.flat if value]
    return min(exponents, default=0)


def bits_of(magnitude: int) -> float:
    """log2 of an integer bound, 0 for nothing: how many bits it needs."""
    return math.log2(magnitude) if magnitude else 0.0
