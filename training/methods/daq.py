"""DAQ (Hong et al., WACV 2022): "DAQ: Channel-wise Distribution-Aware Quantization for Deep Image Super-Resolution".

Activations are normalised per image and channel by their mean and standard deviation and quantized with the step that
is optimal for a Gaussian, table(b) * std (Max 1960), mid-rise; weights likewise with table(b) * std(W) per layer.
Nothing is learned but the weights. Scales per image and channel do not factor out of a convolution's sum, so that no
integer engine can run it: training comparison only.

The official step table is off by one bit and its clamp to 2^b levels is commented out; here the table is Max's and the
clamp is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.weights import WeightCodes
from training.methods.base import Method
from training.quantizers.base import ActivationQuantizer, Quantizable, WeightQuantizer

GAUSSIAN_STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step of the best uniform quantizer of a unit Gaussian by bits (J. Max, 1960, Table II; 6 to 8 bits computed)."""

WHY_NOT = "DAQ scales each channel of each image anew, and such scales do not factor out of a convolution's sum"


@dataclass(frozen=True)
class DaqOptions:
    """Settings of DAQ."""

    clamp: bool = True
    """Clamp to 2^b levels; the official code does not."""


class Daq(Method[DaqOptions]):
    """DAQ; see the module's docstring."""

    name = "daq"
    Options = DaqOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """Normalised per image and channel."""
        return ChannelwiseGaussian(bits, clamp=self.options.clamp)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """Normalised per layer."""
        return GaussianWeight(bits)

    def why_not_exportable(self) -> str | None:
        """Always."""
        return WHY_NOT


def gaussian_quantize(x: Tensor, mean: Tensor, deviation: Tensor, bits: int, *, clamp: bool = True) -> Tensor:
    """Mid-rise levels mean + (k + 1/2) step with step = table(b) * deviation, rounding passed straight through.

    `x` is float32 of any shape, to which `mean` and `deviation` >= 0 broadcast. `clamp`: 2^bits levels only.
    """
    step = (GAUSSIAN_STEPS[bits] * deviation).clamp(min=1e-8)
    quotient = (x - mean) / step
    if clamp:
        half = float(2 ** (bits - 1))
        quotient = quotient.clamp(-half, half)
        index = torch.floor(quotient.detach()).clamp(max=half - 1)
    else:
        index = torch.floor(quotient.detach())
    return (quotient + (index + 0.5 - quotient).detach()) * step + mean


class ChannelwiseGaussian(ActivationQuantizer):
    """Activations on a Gaussian's grid of each image and channel. Nothing to observe or learn."""

    def __init__(self, bits: int, *, clamp: bool) -> None:
        super().__init__(bits)
        self.clamp = clamp

    def observe(self, x: Tensor) -> None:
        """Nothing: statistics are taken anew from every image."""

    def initialize(self) -> None:
        """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        x = x.float()
        deviation, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return gaussian_quantize(x, mean, deviation, self.bits, clamp=self.clamp)

    def grid(self) -> Grid:
        """There is none.

        Raises:
            InputError: always.
        """
        raise InputError("not a static grid", why=WHY_NOT)


class GaussianWeight(WeightQuantizer):
    """Weights on a Gaussian's grid per layer, centered on zero."""

    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`."""
        weight = weight.float()
        return gaussian_quantize(weight, torch.zeros((), device=weight.device), weight.std(), self.bits)

    def codes(self, weight: Tensor) -> WeightCodes:
        """None, because the activations have none.

        Raises:
            InputError: always.
        """
        raise InputError("no integer weights", why=WHY_NOT)
