"""QuantSR (Qin et al., NeurIPS 2023): "QuantSR: Accurate Low-bit Quantization for Efficient Image Super-Resolution".

Its quantizer (redistribution-driven learnable quantizer): a learnable per-channel shift t, then LSQ, with the
derivative of rounding replaced by that of a tanh staircase, (1 - tanh^2(f - 1/2)) / (2 tanh(1/2)), f = frac(x / s). The
shortcut of each block has a learnable factor, started at 1, in EDSR, the only network whose code is published
(`shortcut`). The depth-dynamic architecture of the paper is not part of the comparison. Static: the shift becomes a
constant in front of the frozen layer's quantizer, the factor one of the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odm_deploy.accounting import FLOAT_BITS
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.edsr import EDSR
from odm_deploy.quantization.layers import ChannelOffsets
from training.methods.base import Method
from training.quantizers.base import ActivationQuantizer, Kind, Overhead, Quantizable, WeightQuantizer
from training.quantizers.channels import ChannelAxis
from training.quantizers.learned_step import LearnedStep, LearnedWeightStep


@dataclass(frozen=True)
class QuantSrOptions:
    """Settings of QuantSR; the defaults are the official code's."""

    shift: bool = True
    """Learn a shift per input channel."""
    shortcut: bool = True
    """Learn a factor on each block's shortcut, where the network is an EDSR."""
    per_channel: bool = False
    """One weight step per output channel rather than per layer."""


class QuantSr(Method[QuantSrOptions]):
    """QuantSR's quantizer; see the module's docstring."""

    name = "quantsr"
    Options = QuantSrOptions

    def adapt(self, network: SuperResolutionNetwork) -> SuperResolutionNetwork:
        """Give each block's shortcut a factor."""
        if not self.options.shortcut or not isinstance(network, EDSR):
            return network
        adapted = EDSR(dataclasses.replace(network.config, learned_shortcuts=True))
        adapted.load_state_dict(network.state_dict(), strict=False)
        return adapted.eval()

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

    def overhead(self, pixels: int) -> Overhead:
        """The shifts, float numbers; additions cost nothing."""
        return Overhead(storage_bits=FLOAT_BITS * self.channels.count if self.shift.requires_grad else 0)

    def offsets(self) -> ChannelOffsets | None:
        """T."""
        return ChannelOffsets(shift=self.shift.detach().cpu().clone()) if self.shift.requires_grad else None
