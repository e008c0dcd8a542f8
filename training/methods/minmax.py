"""Plain quantization-aware training: fixed ranges and straight-through rounding, nothing learned but the weights.

The control that shows what learnable ranges are worth. Activation ranges come from calibration and stay; the weight
range is max|W| now (Jacob et al., CVPR 2018, Sec. 3.1, without their moving averages). Static and exportable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.quantization.weights import WeightCodes
from training.methods.base import Method
from training.quantizers.layers import ActivationQuantizer, Quantizable, WeightQuantizer
from training.quantizers.ranges import LearnableRange, RangeInit
from training.quantizers.straight_through import symmetric_codes, symmetric_quantize

_SMALLEST_BOUND = 1e-8


@dataclass(frozen=True)
class MinMaxOptions:
    """Settings of plain quantization-aware training."""

    per_channel: bool = True
    """One weight scale per output channel rather than per layer."""
    range_init: RangeInit = "minmax"
    """How activation ranges are chosen."""
    range_percentile: float = 99.9
    """With range_init = "percentile"."""


class MinMax(Method[MinMaxOptions]):
    """Plain quantization-aware training; see the module's docstring."""

    name = "minmax"
    Options = MinMaxOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A range that calibration fixes."""
        quantizer = LearnableRange(bits, init=self.options.range_init, percent=self.options.range_percentile)
        return quantizer.requires_grad_(False)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """The largest weight is the range."""
        return LargestWeight(bits, per_channel=self.options.per_channel)


class LargestWeight(WeightQuantizer):
    """Weights on the symmetric mid-tread range of max|W|, recomputed every forward, held fixed in the backward."""

    def __init__(self, bits: int, *, per_channel: bool) -> None:
        super().__init__(bits)
        self.per_channel = per_channel

    def bound(self, weight: Tensor) -> Tensor:
        """max|W|, broadcastable to `weight`."""
        rows = weight.detach().float()
        rows = rows.flatten(1) if self.per_channel else rows.reshape(1, -1)
        return rows.abs().amax(dim=1).clamp(min=_SMALLEST_BOUND).reshape(-1, *[1] * (weight.dim() - 1))

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        return symmetric_quantize(weight, self.bound(weight), self.bits, mid_rise=False)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights."""
        codes, scale = symmetric_codes(weight.float(), self.bound(weight), self.bits, mid_rise=False)
        return WeightCodes(codes.to(torch.int8).cpu(), scale.reshape(-1).cpu(), self.bits, -(2 ** (self.bits - 1)))
