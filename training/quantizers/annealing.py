"""Scales that become powers of two over the first part of a run, instead of being so from its start.

An exponent that is rounded from the start follows its range only when that has moved by half an octave, and short runs
end before. On the way there, ranges settle where weights and features want them, and weights get used to the rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Exponents(nn.Module):
    """How near the scales of one quantizer are to powers of two, for `scale_near_power_of_two`.

    Args:
        annealed: `anneal` will bring them there; otherwise they are there from the start.
    """

    nearness: Tensor

    def __init__(self, *, annealed: bool = False) -> None:
        super().__init__()
        # Not part of the state: it follows from the iteration.
        self.register_buffer("nearness", torch.tensor(0.0 if annealed else 1.0), persistent=False)

    def forward(self) -> Tensor | None:
        """The nearness while training, float32 []; None (all the way) for what is validated or frozen."""
        return self.nearness if self.training else None


def anneal(network: nn.Module, nearness: float) -> None:
    """Set the nearness of every quantizer of a network, 0 to 1."""
    for module in network.modules():
        if isinstance(module, Exponents):
            module.nearness.fill_(nearness)
