"""Ranges of weights: between two percentiles (ODM v1, DDTB), or symmetric (ODM v2; PAMS and plain training)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.quantization.straight_through.range import range_quantize, snapped_grid
from odm_deploy.quantization.straight_through.symmetric import symmetric_codes, symmetric_quantize
from odm_deploy.quantization.weights import WeightCodes
from training.quantizers.base import WeightQuantizer, per_row, weight_rows
from training.quantizers.statistics import percentile

SMALLEST_BOUND = 1e-8


class PercentileWeight(WeightQuantizer):
    """Weights between the (100 - p)-th and p-th percentile of W.

    The range is recomputed every forward and held fixed in the backward. Zero is snapped onto the grid, so that the
    codes minus the zero point are the integers an engine multiplies. `free`: the first level is the percentile itself,
    and levels are no multiples of a scale; at two bits snapping turns nearly symmetric weights from levels around zero
    into -2, -1, 0 and 1 times the scale.

    Raises:
        InputError: 8 bits, because codes minus a zero point do not fit int8 then.
    """

    def __init__(self, bits: int, *, percent: float, free: bool = False) -> None:
        if bits > 7 and not free:
            raise InputError("no asymmetric weights at 8 bits", why="codes minus a zero point do not fit int8")
        super().__init__(bits)
        self.percent, self.free = percent, free

    def range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u), widened to hold zero unless free; float32 scalars."""
        lower, upper = percentile(weight, 100.0 - self.percent), percentile(weight, self.percent)
        if not self.free:
            lower, upper = lower.clamp(max=0.0), upper.clamp(min=0.0)
        return lower, torch.maximum(upper, lower + SMALLEST_BOUND)

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        return range_quantize(weight, *self.range(weight), self.bits, free=self.free)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights: codes minus the zero point.

        Raises:
            InputError: the range is free.
        """
        if self.free:
            raise InputError("levels of weights are no multiples of a scale", why="their range is free")
        scale, zero_point = snapped_grid(*self.range(weight), self.bits)
        index = torch.clamp(torch.round(weight.float() / scale) + zero_point, 0, 2**self.bits - 1)
        return WeightCodes(
            (index - zero_point).to(torch.int8).cpu(), scale.reshape(1).cpu(), self.bits, -int(zero_point.item())
        )


class SymmetricWeight(WeightQuantizer):
    """Weights on a symmetric range; subclasses say how far it reaches."""

    mid_rise: bool = False
    """Levels around zero (ODM v2) rather than with it."""
    power_of_two: bool = False
    """The scale is the power of two nearest to the range's."""

    @abstractmethod
    def bound(self, weight: Tensor) -> Tensor:
        """U > 0, broadcastable to `weight`."""

    def nearness(self) -> Tensor | None:
        """How near scales are to powers of two while they are annealed; None: all the way."""
        return None

    def levels(self, weight: Tensor, bound: Tensor) -> Tensor:
        """`weight` on the grid with that bound."""
        return symmetric_quantize(
            *(weight, bound, self.bits),
            mid_rise=self.mid_rise,
            power_of_two=self.power_of_two,
            nearness=self.nearness(),
        )

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        return self.levels(weight, self.bound(weight))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights; whatever is learned about the range folds into their scale."""
        codes, scale = symmetric_codes(
            weight.float(), self.bound(weight), self.bits, mid_rise=self.mid_rise, power_of_two=self.power_of_two
        )
        first, step = (-(2**self.bits - 1), 2) if self.mid_rise else (-(2 ** (self.bits - 1)), 1)
        return WeightCodes(codes.to(torch.int8).cpu(), scale.reshape(-1).cpu(), self.bits, first, step)


class LargestWeight(SymmetricWeight):
    """Weights on the range of max|W|, per layer or output channel, recomputed every forward, fixed in the backward."""

    def __init__(self, bits: int, *, per_channel: bool) -> None:
        super().__init__(bits)
        self.per_channel = per_channel

    def bound(self, weight: Tensor) -> Tensor:
        """max|W|, broadcastable to `weight`."""
        rows = weight_rows(weight, per_channel=self.per_channel)
        return per_row(rows.abs().amax(dim=1).clamp(min=SMALLEST_BOUND), weight)
