"""Learned steps (LSQ, Esser et al. 2020): for activations, signed or not, and for weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.quantization.straight_through.step import RoundDerivative, step_codes, step_quantize
from odm_deploy.quantization.weights import WeightCodes
from training.quantizers.base import ActivationQuantizer, Kind, SavedFlag, WeightQuantizer, per_row, weight_rows

_SMALLEST_STEP = 1e-8


class _OnStep(nn.Module):
    """What both quantizers below share: levels on a step of their own, which stays positive.

    With `scale_gradients` the step's gradient is divided by sqrt(values on the step * Qp).
    """

    bits: int
    step: nn.Parameter
    scale_gradients: bool
    derivative: RoundDerivative

    @property
    def is_signed(self) -> bool:
        """Whether there are negative codes."""
        return True

    @property
    def negative_codes(self) -> int:
        """Qn."""
        return 2 ** (self.bits - 1) if self.is_signed else 0

    @property
    def positive_codes(self) -> int:
        """Qp."""
        return 2**self.bits - 1 - self.negative_codes

    def levels(self, x: Tensor, step: Tensor) -> Tensor:
        """Levels of `x` on `step`, which broadcasts to it."""
        values = x.numel() / self.step.numel()
        factor = (values * self.positive_codes) ** -0.5 if self.scale_gradients else 1.0
        return step_quantize(
            x, step, self.negative_codes, self.positive_codes, gradient_scale=factor, derivative=self.derivative
        )

    def kind_of(self, parameter: str) -> Kind:
        """Steps, of activations or of weights."""
        return "weight_steps" if isinstance(self, WeightQuantizer) else "steps"

    @torch.no_grad()
    def project(self) -> None:
        """Keep the step positive."""
        self.step.clamp_(min=_SMALLEST_STEP)


class LearnedStep(_OnStep, ActivationQuantizer):
    """Activations on a learned step, signed or not as the first batches are."""

    def __init__(self, bits: int, *, scale_gradients: bool, derivative: RoundDerivative = "one") -> None:
        super().__init__(bits)
        self.scale_gradients = scale_gradients
        self.derivative = derivative
        self.step = nn.Parameter(torch.tensor(1.0))
        self.signed = SavedFlag(True)
        self._batches: list[tuple[Tensor, Tensor]] = []

    @property
    def is_signed(self) -> bool:
        """Whether the first batches had negative values."""
        return self.signed.is_set

    def observe(self, x: Tensor) -> None:
        """Keep mean |x| and the minimum."""
        self._batches.append((x.detach().float().abs().mean(), x.detach().float().min()))

    def initialize(self) -> None:
        """Fix the signedness and set the step."""
        magnitudes, minima = (torch.stack(values) for values in zip(*self._batches, strict=True))
        self._batches.clear()
        with torch.no_grad():
            self.signed.set(bool(minima.min() < 0))
            self.step.copy_(2 * magnitudes.mean() / self.positive_codes**0.5)
        self.project()

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        return self.levels(x, self.step)

    def grid(self) -> Grid:
        """The static grid; Qn is its zero point."""
        return Grid(self.step.item(), self.negative_codes, self.bits)


class LearnedWeightStep(_OnStep, WeightQuantizer):
    """Weights on a learned step per layer or output channel, codes -2^(b-1) .. 2^(b-1) - 1; it starts from `weight`."""

    def __init__(
        self,
        bits: int,
        weight: Tensor,
        *,
        per_channel: bool,
        scale_gradients: bool,
        derivative: RoundDerivative = "one",
    ) -> None:
        super().__init__(bits)
        self.scale_gradients = scale_gradients
        self.derivative = derivative
        start = 2 * weight_rows(weight, per_channel=per_channel).abs().mean(dim=1) / self.positive_codes**0.5
        self.step = nn.Parameter(start.clamp(min=_SMALLEST_STEP))

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        return self.levels(weight, per_row(self.step, weight))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights."""
        step = per_row(self.step, weight)
        codes = step_codes(weight.float(), step, self.negative_codes, self.positive_codes)
        return WeightCodes(codes.to(torch.int8).cpu(), self.step.detach().cpu(), self.bits, -self.negative_codes)
