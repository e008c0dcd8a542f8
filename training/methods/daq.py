"""DAQ (Hong et al., WACV 2022): "DAQ: Channel-wise Distribution-Aware Quantization for Deep Image Super-Resolution".

Activations are normalised per image and channel by their mean and standard deviation and quantized with the step that
is optimal for a Gaussian, table(b) * std (Max 1960), mid-rise; weights likewise with table(b) * std(W) per layer.
Behind a ReLU mean and deviation are those of the positive values, and the levels are 0 .. 2^b - 1 times the step.
Gradients pass all of it as if it were not there, clamps included. Nothing is learned but the weights. Scales per image
and channel do not factor out of a convolution's sum, so that no integer engine can run it: training comparison only.

The official step table is off by one bit (`official_steps`), its clamp behind a ReLU is commented out (`clamp`), and it
asks of every batch whether its smallest value is exactly zero; here calibration asks that once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.accounting import FLOAT_BITS
from odm_deploy.errors import InputError, UsageError
from odm_deploy.grid import Grid
from odm_deploy.quantization.weights import WeightCodes
from training.methods.base import Method
from training.quantizers.base import (
    ActivationQuantizer,
    Overhead,
    Quantizable,
    SavedFlag,
    WeightQuantizer,
    straight_through,
)
from training.quantizers.channels import ChannelAxis

GAUSSIAN_STEPS = {1: 1.5958, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step of the best uniform quantizer of a unit Gaussian by bits (J. Max, 1960, Table II; 6 to 8 bits computed)."""

WHY_NOT = "DAQ scales each channel of each image anew, and such scales do not factor out of a convolution's sum"

_SMALLEST_STEP = 1e-8


@dataclass(frozen=True)
class DaqOptions:
    """Settings of DAQ."""

    clamp: bool = True
    """Clamp to 2^b levels behind a ReLU, too; the official code has that line commented out."""
    relu_branch: bool = True
    """Other statistics and levels where no input is negative; false: the mid-rise levels everywhere."""
    official_steps: bool = False
    """The step of one bit less, table(b - 1), as the official code reads its table."""
    deviation_bits: int = 0
    """Quantize the deviations of an image's channels, too, with so many bits around their mean (the authors'
    "quantization of quantization"; 4 in their EDSR-baseline); 0: float deviations, their code's default."""


class Daq(Method[DaqOptions]):
    """DAQ; see the module's docstring."""

    name = "daq"
    Options = DaqOptions

    def __init__(self, options: DaqOptions) -> None:
        super().__init__(options)
        if options.deviation_bits not in (0, *range(2, 9)):
            raise UsageError(f"cannot use method.deviation_bits = {options.deviation_bits}", fix="write 0, or 2 to 8")

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """Normalised per image and channel."""
        o = self.options
        return ChannelwiseGaussian(
            *(bits, ChannelAxis.of(layer), self._step(bits)),
            clamp=o.clamp,
            relu_branch=o.relu_branch,
            deviations=(o.deviation_bits, self._step(o.deviation_bits)) if o.deviation_bits else None,
        )

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """Normalised per layer."""
        return GaussianWeight(bits, self._step(bits))

    def _step(self, bits: int) -> float:
        return GAUSSIAN_STEPS[bits - 1 if self.options.official_steps else bits]

    def why_not_exportable(self) -> str | None:
        """Always."""
        return WHY_NOT


def mid_rise_levels(x: Tensor, mean: Tensor, step: Tensor, bits: int) -> Tensor:
    """Levels mean + (k + 1/2) step, -2^(b-1) <= k < 2^(b-1); `mean` and `step` > 0 broadcast to `x`."""
    half = 2 ** (bits - 1)
    index = torch.floor((x - mean) / step).clamp(-half, half - 1)
    return (index + 0.5) * step + mean


class ChannelwiseGaussian(ActivationQuantizer):
    """Activations on a Gaussian's grid of each image and channel. Nothing to learn.

    Args:
        bits: width of a code.
        channels: of the input.
        step: in standard deviations.
        clamp: to 2^bits levels behind a ReLU; elsewhere always.
        relu_branch: whether inputs that are never negative have levels of their own.
        deviations: bits of the deviations' own grid and its step, in deviations of the deviations; None: float ones.
    """

    def __init__(
        self,
        bits: int,
        channels: ChannelAxis,
        step: float,
        *,
        clamp: bool,
        relu_branch: bool,
        deviations: tuple[int, float] | None = None,
    ) -> None:
        super().__init__(bits)
        self.deviations = deviations
        self.channels, self.step, self.clamp, self.relu_branch = channels, step, clamp, relu_branch
        self.positive = SavedFlag(False)
        self._minima: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Whether anything is negative; statistics are taken anew from every image."""
        self._minima.append(x.detach().float().min())

    def initialize(self) -> None:
        """Remember whether anything was."""
        self.positive.set(self.relu_branch and bool(torch.stack(self._minima).min() >= 0))
        self._minima.clear()

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        x = x.float()
        return straight_through(x, self._positive(x.detach()) if self.positive.is_set else self._signed(x.detach()))

    def _signed(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, dim=self.channels.pixels(x), keepdim=True)
        return mid_rise_levels(x, mean, self._steps(deviation), self.bits)

    def _positive(self, x: Tensor) -> Tensor:
        pixels = self.channels.pixels(x)
        count = (x > 0).sum(pixels, keepdim=True) + 1
        mean = x.sum(pixels, keepdim=True) / count
        variance = x.square().sum(pixels, keepdim=True) / count - mean.square()
        step = self._steps(variance.clamp(min=0.0).sqrt())
        codes = torch.round(x / step)
        return (codes.clamp(max=2**self.bits - 1) if self.clamp else codes) * step

    def _steps(self, deviation: Tensor) -> Tensor:
        """Steps for the deviations of an image's channels, shaped like them."""
        if self.deviations is not None:
            bits, step = self.deviations
            axis = -1 if self.channels.is_last else 1
            spread, mean = torch.std_mean(deviation, dim=axis, keepdim=True)
            deviation = mid_rise_levels(deviation, mean, (step * spread).clamp(min=_SMALLEST_STEP), bits)
        return (self.step * deviation).clamp(min=_SMALLEST_STEP)

    def overhead(self, pixels: int) -> Overhead:
        """The variance of each image and channel: a float multiply-add a value."""
        return Overhead(bit_operations=2 * self.channels.count * pixels * FLOAT_BITS**2)

    def grid(self) -> Grid:
        """There is none.

        Raises:
            InputError: always.
        """
        raise InputError("not a static grid", why=WHY_NOT)


class GaussianWeight(WeightQuantizer):
    """Weights on a Gaussian's grid per layer, centered on zero; `step` in standard deviations."""

    def __init__(self, bits: int, step: float) -> None:
        super().__init__(bits)
        self.step = step

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        weight = weight.float()
        fixed = weight.detach()
        step = (self.step * fixed.std()).clamp(min=_SMALLEST_STEP)
        return straight_through(weight, mid_rise_levels(fixed, torch.zeros_like(step), step, self.bits))

    def codes(self, weight: Tensor) -> WeightCodes:
        """None, because the activations have none.

        Raises:
            InputError: always.
        """
        raise InputError("no integer weights", why=WHY_NOT)
