"""Tiny models of the `exact` profile, calibrated, of every network that has one."""

from __future__ import annotations

import functools
from typing import Any

import torch

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.factories import random_images

SIZES: dict[str, dict[str, Any]] = {
    "edsr": {"scale": 2, "features": 8, "blocks": 2, "residual_scale": 0.3},
    "srresnet": {"scale": 2, "features": 8, "blocks": 2, "input_range": 1.0},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "growth": 6, "features": 8},
}
"""Networks that can be exact, with hyper-parameters that `make_exact` has to do something about."""


def small_network(name: str) -> SuperResolutionNetwork:
    """A float network with seeded weights and PReLU slopes of many digits."""
    torch.manual_seed(7)
    network = build_network(name, SIZES[name]).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.data.uniform_(-0.3, 0.7)
    return network


@functools.cache
def calibrated_exact(name: str, bits: int = 4) -> QuantizedModel:
    """A small network in the exact profile. Cached: treat it as read-only."""
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    model, _ = calibrate(small_network(name), images, QuantizationPolicy.parse("exact", str(bits)))
    return model
