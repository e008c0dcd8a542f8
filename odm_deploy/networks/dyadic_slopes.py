"""Slopes of PReLUs and leaky ReLUs with few binary digits, as exact networks have them."""

from __future__ import annotations

import torch
from torch import nn

SLOPE_UNIT = 2.0**-4
"""What slopes are rounded to; each bit of them is one less for sums."""


@torch.no_grad()
def round_slopes(network: nn.Module) -> None:
    """Round the slope of every PReLU and leaky ReLU to a multiple of `SLOPE_UNIT`, in place."""
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.weight.copy_(torch.round(module.weight / SLOPE_UNIT) * SLOPE_UNIT)
        elif isinstance(module, nn.LeakyReLU):
            module.negative_slope = round(module.negative_slope / SLOPE_UNIT) * SLOPE_UNIT
