"""LSQ (Esser et al., ICLR 2020): learned step size quantization, the plain strong baseline.

y = round(clip(x / s, -Qn, Qp)) * s with one learnable step s per layer. Activations that are never negative on the
first batches are unsigned (Qn = 0, Qp = 2^b - 1), others signed (Qn = 2^(b-1), Qp = Qn - 1), as weights are. Steps
start at 2 mean|x| / sqrt(Qp) and their gradient is scaled by 1 / sqrt(numel * Qp) (Secs. 2.1, 2.2). Static and
exportable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.quantization.weights import WeightCodes
from training.methods.base import Method
from training.quantizers.flag import Flag
from training.quantizers.layers import ActivationQuantizer, Quantizable, WeightQuantizer
from training.quantizers.straight_through import RoundDerivative, step_codes, step_quantize

_SMALLEST_STEP = 1e-8


@dataclass(frozen=True)
class LsqOptions:
    """Settings of LSQ; the defaults are the paper's."""

    per_channel: bool = False
    """One weight step per output channel rather than per layer (the paper)."""
    scale_gradients: bool = True
    """Divide the steps' gradients by sqrt(numel * Qp). Adam ignores a constant factor; other optimizers do not."""


class Lsq(Method[LsqOptions]):
    """LSQ; see the module's docstring."""

    name = "lsq"
    Options = LsqOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A learned step."""
        return LearnedStep(bits, scale_gradients=self.options.scale_gradients)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A learned step, signed."""
        return LearnedWeightStep(
            bits,
            layer.weight.detach(),
            per_channel=self.options.per_channel,
            scale_gradients=self.options.scale_gradients,
        )


class LearnedStep(ActivationQuantizer):
    """Activations on a learned step, signed or not as the first batches are."""

    def __init__(self, bits: int, *, scale_gradients: bool, derivative: RoundDerivative = "one") -> None:
        super().__init__(bits)
        self.scale_gradients = scale_gradients
        self.derivative: RoundDerivative = derivative
        self.step = nn.Parameter(torch.tensor(1.0))
        self.signed = Flag(True)
        self._batches: list[tuple[Tensor, Tensor]] = []

    @property
    def negative_codes(self) -> int:
        """Qn."""
        return 2 ** (self.bits - 1) if self.signed.is_set else 0

    @property
    def positive_codes(self) -> int:
        """Qp."""
        return 2**self.bits - 1 - self.negative_codes

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
        factor = (x.numel() * self.positive_codes) ** -0.5 if self.scale_gradients else 1.0
        return step_quantize(
            x, self.step, self.negative_codes, self.positive_codes, gradient_scale=factor, derivative=self.derivative
        )

    @torch.no_grad()
    def project(self) -> None:
        """Keep the step positive."""
        self.step.clamp_(min=_SMALLEST_STEP)

    def grid(self) -> Grid:
        """The static grid; Qn is its zero point."""
        return Grid(self.step.item(), self.negative_codes, self.bits)


class LearnedWeightStep(WeightQuantizer):
    """Weights on a learned step, codes -2^(b-1) .. 2^(b-1) - 1."""

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
        self.derivative: RoundDerivative = derivative
        self.negative_codes, self.positive_codes = 2 ** (bits - 1), 2 ** (bits - 1) - 1
        rows = weight.float().flatten(1) if per_channel else weight.float().reshape(1, -1)
        start = 2 * rows.abs().mean(dim=1) / self.positive_codes**0.5
        self.step = nn.Parameter(start.clamp(min=_SMALLEST_STEP))

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        per_step = weight.numel() / self.step.numel()
        factor = (per_step * self.positive_codes) ** -0.5 if self.scale_gradients else 1.0
        return step_quantize(
            weight,
            self._shaped_step(weight),
            self.negative_codes,
            self.positive_codes,
            gradient_scale=factor,
            derivative=self.derivative,
        )

    @torch.no_grad()
    def project(self) -> None:
        """Keep the steps positive."""
        self.step.clamp_(min=_SMALLEST_STEP)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer weights."""
        codes = step_codes(weight.float(), self._shaped_step(weight), self.negative_codes, self.positive_codes)
        return WeightCodes(codes.to(torch.int8).cpu(), self.step.detach().cpu(), self.bits, -self.negative_codes)

    def _shaped_step(self, weight: Tensor) -> Tensor:
        return self.step.reshape(-1, *[1] * (weight.dim() - 1))
