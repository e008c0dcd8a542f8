"""Rounding to powers of two and to multiples of a unit, as the `exact` profile needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odm_deploy.quantization.power_of_two import nearest_power_of_two, round_to_multiples


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


class _RoundToMultiples(torch.autograd.Function):
    """The nearest multiple of a unit, the gradient passed straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, unit: Tensor) -> Tensor:
        return round_to_multiples(values, unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def round_straight_through(values: Tensor, unit: Tensor) -> Tensor:
    """The multiples of `unit` nearest to `values`; the gradient is that of `values`."""
    return _RoundToMultiples.apply(values, unit)  # type: ignore[no-any-return]
