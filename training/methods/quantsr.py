"""QuantSR (Qin et al., NeurIPS 2023): "QuantSR: Accurate Low-bit Quantization for Efficient Image Super-Resolution".

Its quantizer (redistribution-driven learnable quantizer): a learnable per-channel shift t, then LSQ, with the
derivative of rounding replaced by that of a tanh staircase, (1 - tanh^2(f - 1/2)) / (2 tanh(1/2)), f = frac(x / s). The
depth-dynamic architecture of the paper is not part of the comparison. Static: the shift becomes a constant in front of
the frozen layer's quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odm_deploy.quantization.layers import ChannelOffsets
from training.methods.base import Method
from training.quantizers.base import ActivationQuantizer, Kind, Quantizable, WeightQuantizer
from training.quantizers.channels import ChannelAxis
from training.quantizers.learned_step import LearnedStep, LearnedWeightStep


@dataclass(frozen=True)
class QuantSrOptions:
    """Settings of QuantSR; the defaults are the official code's."""

    shift: bool = True
    """Learn a shift per input channel."""
    per_channel: bool = False
    """One weight step per output channel rather than per layer."""


class QuantSr(Method[QuantSrOptions]):
    """QuantSR's quantizer; see the module's docstring."""

    name = "quantsr"
    Options = QuantSrOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """Shift, then a learned step."""
        return ShiftedStep(bits, ChannelAxis.of(layer), shift=self.options.shift)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A learned step."""
        return LearnedWeightStep(
            bits, layer.weight.detach(), per_channel=self.options.per_channel, scale_gradients=True, derivative="tanh"
        )


class ShiftedStep(LearnedStep):
    """A per-channel shift before a learned step."""

    def __init__(self, bits: int, channels: ChannelAxis, *, shift: bool) -> None:
        super().__init__(bits, scale_gradients=True, derivative="tanh")
        self.channels = channels
        self.shift = nn.Parameter(torch.zeros(channels.count), requires_grad=shift)

    def kind_of(self, parameter: str) -> Kind:
        """The shift is an offset."""
        return "offsets" if parameter == "shift" else super().kind_of(parameter)

    def transform(self, x: Tensor) -> Tensor:
        """X + t."""
        return x.float() + self.channels.shaped(self.shift) if self.shift.requires_grad else x

    def offsets(self) -> ChannelOffsets | None:
        """T."""
        return ChannelOffsets(shift=self.shift.detach().cpu().clone()) if self.shift.requires_grad else None
