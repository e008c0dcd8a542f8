"""Weights on an asymmetric range between two percentiles: ODM v1's and DDTB's."""

from __future__ import annotations

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.quantization.weights import WeightCodes
from training.quantizers.base import WeightQuantizer
from training.quantizers.statistics import percentile
from training.quantizers.straight_through.range import range_quantize, snapped_grid

_SMALLEST_WIDTH = 1e-8


class PercentileWeight(WeightQuantizer):
    """Weights between the (100 - p)-th and p-th percentile of W.

    The range is recomputed every forward and held fixed in the backward. Zero is snapped onto the grid, so that the
    codes minus the zero point are the integers an engine multiplies.

    Args:
        bits: width of a code, up to 7: 8-bit codes minus a zero point do not fit int8.
        percent: p.

    Raises:
        InputError: 8 bits.
    """

    def __init__(self, bits: int, *, percent: float) -> None:
        if bits > 7:
            raise InputError("no asymmetric weights at 8 bits", why="codes minus a zero point do not fit int8")
        super().__init__(bits)
        self.percent = percent

    def range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u), widened to hold zero; float32 scalars."""
        lower = percentile(weight, 100.0 - self.percent).clamp(max=0.0)
        upper = percentile(weight, self.percent).clamp(min=0.0)
        return lower, torch.maximum(upper, lower + _SMALLEST_WIDTH)

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        return range_quantize(weight, *self.range(weight), self.bits)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights: codes minus the zero point."""
        scale, zero_point = snapped_grid(*self.range(weight), self.bits)
        index = torch.clamp(torch.round(weight.float() / scale) + zero_point, 0, 2**self.bits - 1)
        return WeightCodes(
            (index - zero_point).to(torch.int8).cpu(), scale.reshape(1).cpu(), self.bits, -int(zero_point.item())
        )
