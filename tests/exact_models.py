"""Tiny models of the `exact` profile, calibrated, of every network that has one."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.factories import random_images

SIZES: dict[str, dict[str, Any]] = {
    "edsr": {"scale": 2, "features": 8, "blocks": 2, "residual_scale": 0.3},
    "srresnet": {"scale": 2, "features": 8, "blocks": 2, "input_range": 1.0},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "growth": 6, "features": 8},
    "compact": {"scale": 2, "features": 8, "input_range": 1.0},
}
"""Networks that can be exact, with hyper-parameters that `make_exact` has to do something about."""


class Chain(nn.Module):
    """Somebody else's chain of convolutions, beside which the image is repeated, as Real-ESRGAN's Compact has it."""

    def __init__(self, features: int, scale: int) -> None:
        super().__init__()
        widths = [3, features, features, features]
        activations = [nn.PReLU(features), nn.LeakyReLU(0.1, inplace=True), nn.ReLU(inplace=True)]
        self.body = nn.ModuleList()
        for inputs, outputs, activation in zip(widths, widths[1:], activations, strict=False):
            self.body += [nn.Conv2d(inputs, outputs, 3, padding=1), activation]
        self.body.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        out = self.upsampler(out)
        out += F.interpolate(x, scale_factor=self.upsampler.upscale_factor, mode="nearest")
        return out


class Again(nn.Module):
    """A convolution that runs three times, twice on one input, and whose results are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.shared, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.upsampler = nn.PixelShuffle(2)

    def forward(self, x):
        first, other = self.first(x), self.other(x)
        return self.upsampler(self.last(self.shared(first) + self.shared(other) + self.shared(first)))


def small_network(name: str) -> SuperResolutionNetwork:
    """A float network with seeded weights and PReLU slopes of many digits."""
    torch.manual_seed(7)
    if name == "again":
        return foreign_network(Again())
    network = _compact(**SIZES[name]) if name == "compact" else build_network(name, SIZES[name]).eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.3, 0.7)
    return network


def _compact(input_range: float, **sizes: int) -> SuperResolutionNetwork:
    return foreign_network(Chain(**sizes), builder="tests.exact_models:Chain", arguments=sizes, input_range=input_range)


@functools.cache
def calibrated_exact(name: str, bits: int = 4) -> QuantizedModel:
    """A small network in the exact profile. Cached: treat it as read-only."""
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    model, _ = calibrate(small_network(name), images, QuantizationPolicy.parse("exact", str(bits)))
    return model
