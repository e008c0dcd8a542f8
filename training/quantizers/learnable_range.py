"""A learnable range [l, u] per layer: the activation quantizer of both ODMs, and the base of other methods'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.quantization.straight_through.range import free_grid, range_quantize, snapped_grid
from training.quantizers.annealing import Exponents
from training.quantizers.base import ActivationQuantizer
from training.quantizers.statistics import percentile, thin

RangeInit = Literal["percentile", "minmax", "mse"]

_SMALLEST_WIDTH = 1e-4
_SHRINK_FACTORS = tuple(1.0 - 0.05 * step for step in range(17))
_WIDENINGS = (1.4, 1.2)


class LearnableRange(ActivationQuantizer):
    """Eq. 1 of ODM on a learnable layer-wise range, initialised from calibration batches.

    Zero is snapped onto the grid in the forward pass already, so what is trained is what an integer engine computes.

    Args:
        bits: width of a code.
        init: `percentile`: mean over batches of the (100 - p)-th and p-th percentile (ODM); `minmax`: extremes over all
            batches; `mse`: the extremes shrunk by the common factor with the smallest mean squared error.
        percent: p.
        free: the first level is exactly l, and zero need not be a level (Eq. 1 to the letter).
        relative: learn l and u in units of the initial width, so that one learning rate suits layers whose features
            differ in magnitude.
        power_of_two: the scale is the power of two nearest to the range's.
        annealed: it becomes that only in the course of training (`training.quantizers.annealing`).
    """

    lower_statistic: Tensor
    upper_statistic: Tensor
    unit: Tensor

    def __init__(
        self,
        bits: int,
        *,
        init: RangeInit = "percentile",
        percent: float = 99.0,
        free: bool = False,
        relative: bool = False,
        power_of_two: bool = False,
        annealed: bool = False,
    ) -> None:
        super().__init__(bits)
        self.init, self.percent, self.free, self.relative = init, percent, free, relative
        self.power_of_two = power_of_two
        self.exponents = Exponents(annealed=annealed)
        self.pads_before_quantizing = free
        self.lower = nn.Parameter(torch.tensor(-1.0))
        self.upper = nn.Parameter(torch.tensor(1.0))
        # Feature units per unit of a parameter.
        self.register_buffer("unit", torch.tensor(1.0))
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """L and u in feature units, float32 scalars, differentiable."""
        return self.lower * self.unit, self.upper * self.unit

    def observe(self, x: Tensor) -> None:
        """Keep the range that this batch asks for."""
        values = thin(x)
        if self.init == "percentile":
            lower, upper = percentile(values, 100.0 - self.percent), percentile(values, self.percent)
        else:
            lower, upper = torch.aminmax(x.detach().float())
        # Only the search for the smallest error needs the values again.
        kept = thin(values, 1 << 16) if self.init == "mse" else values.new_empty(0)
        self._batches.append((lower, upper, kept))

    def initialize(self) -> None:
        """Set l and u from the observed batches."""
        lowers = torch.stack([lower for lower, _, _ in self._batches])
        uppers = torch.stack([upper for _, upper, _ in self._batches])
        if self.init == "percentile":
            lower, upper = lowers.mean(), uppers.mean()
        else:
            lower, upper = lowers.min(), uppers.max()
        if self.init == "mse":
            factor = self._best_shrinkage(lower, upper)
            lower, upper = lower * factor, upper * factor
        self._batches.clear()
        self.set_range(lower, upper)

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Make [lower, upper] the range, widened to hold zero unless free."""
        with torch.no_grad():
            if self.relative:
                self.unit.copy_((upper - lower).clamp(min=_SMALLEST_WIDTH))
            self.lower.copy_(lower / self.unit)
            self.upper.copy_(upper / self.unit)
        self.project()

    def project(self) -> None:
        """Keep l <= 0 <= u (unless free) and the range wide enough to divide by."""
        self.project_all([self])

    @classmethod
    def project_all(cls, quantizers: Sequence[Any]) -> None:
        """As `project` does, in an operation for all of them."""
        foreach = cast("Any", torch)
        lowers, uppers = [each.lower for each in quantizers], [each.upper for each in quantizers]
        with torch.no_grad():
            if snapped := [each for each in quantizers if not each.free]:
                foreach._foreach_clamp_max_([each.lower for each in snapped], 0.0)
                foreach._foreach_clamp_min_([each.upper for each in snapped], 0.0)
            widths = foreach._foreach_mul(
                foreach._foreach_reciprocal([each.unit for each in quantizers]), _SMALLEST_WIDTH
            )
            foreach._foreach_clamp_min_(uppers, foreach._foreach_add(lowers, widths))

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        return self._levels(x, *self.range)

    def _levels(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return range_quantize(
            *(x, lower, upper, self.bits),
            free=self.free,
            power_of_two=self.power_of_two,
            nearness=self.exponents(),
        )

    def grid(self) -> Grid:
        """The static grid of the learned range."""
        lower, upper = (bound.detach().cpu() for bound in self.range)
        if self.free:
            scale, center = free_grid(lower, upper, self.bits)
            return Grid(scale.item(), 2 ** (self.bits - 1), self.bits, center=center.item())
        scale, zero_point = snapped_grid(lower, upper, self.bits, power_of_two=self.power_of_two)
        return Grid(scale.item(), int(zero_point.item()), self.bits)

    def _best_shrinkage(self, lower: Tensor, upper: Tensor) -> float:
        values = torch.cat([kept for _, _, kept in self._batches]).float()
        lower, upper = (lower, upper) if self.free else (lower.clamp(max=0.0), upper.clamp(min=0.0))

        def error(factor: float) -> float:
            width = (upper - lower).clamp(min=_SMALLEST_WIDTH)
            first = lower * factor
            levels = self._levels(values, first, first + width * factor)
            return float((values - levels).square().mean())

        # Rounding to the nearest power of two may shrink the range by itself.
        return min((*_WIDENINGS, *_SHRINK_FACTORS) if self.power_of_two else _SHRINK_FACTORS, key=error)
