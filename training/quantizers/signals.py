"""Signals in training: tensors between layers whose 8-bit ranges are learned like those of layers' inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.signal_plan import Signal, plan_signals
from odm_deploy.quantization.signals import attach
from training.quantizers.learnable_range import LearnableRange


class TrainableSignal(nn.Module):
    """Puts a tensor of any shape on a learnable range; float32.

    Args:
        signal: what it is.
        learnable: its range, which signals that are joined share.
    """

    def __init__(self, signal: Signal, learnable: LearnableRange) -> None:
        super().__init__()
        self.name, self.is_rectified = signal.name, signal.is_rectified
        self.range = learnable
        self.is_fixed = False
        self.calibrating = False

    def fix(self, lower: float, upper: float) -> None:
        """Make this the range, for good."""
        self.range.set_range(torch.tensor(lower), torch.tensor(upper))
        self.range.requires_grad_(False)
        self.is_fixed = True

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`; `x` itself while calibrating."""
        if not self.calibrating:
            return self.range(x)
        if not self.is_fixed:
            self.range.observe(x.clamp(min=0.0) if self.is_rectified else x)
        return x

    def initialize(self) -> None:
        """Set the range from what was observed."""
        if not self.is_fixed:
            self.range.initialize()


def attach_signals(
    network: SuperResolutionNetwork, widths: Mapping[str, int], bits: int, *, power_of_two: bool = False
) -> tuple[dict[str, TrainableSignal], dict[str, LearnableRange]]:
    """Put learnable ranges on the signals of a float network, in place.

    Args:
        network: the network, before its layers are replaced.
        widths: bits of the input of each layer that will be quantized.
        bits: of the signals.
        power_of_two: their scales are powers of two.

    Returns:
        The signals by name; and the range of each layer that reads one signal of its own width, which is the signal's.
    """
    network.align_output()
    plan = plan_signals(network, widths.keys())
    # From the smallest error, relative to its width, whatever the method: the residual stream needs its tails.
    ranges = {
        signal.name: LearnableRange(bits, init="mse", relative=True, power_of_two=power_of_two)
        for signal in plan.signals
    }
    found = {signal.name: TrainableSignal(signal, ranges[plan.grid_owner(signal.name)]) for signal in plan.signals}
    pixels = network.output_grid
    for signal in plan.signals:
        if signal.is_image and pixels is not None and pixels.bits == bits:
            found[signal.name].fix(pixels.lower, pixels.upper)
        attach(network, signal.name, found[signal.name])
    shared = {layer: found[name].range for layer, name in plan.feeds.items() if widths[layer] == bits}
    return found, shared
