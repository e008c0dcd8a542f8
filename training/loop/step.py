"""What a training step is: one forward pass, the losses, the gradient to follow, and following it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.acceleration import bfloat16_convolutions
from training.distributed import World
from training.methods.base import Gradients, Method, Step, gradients
from training.model import TrainableModel


@dataclass(frozen=True)
class GradientStep:
    """Computes the gradients of an iteration from its batch."""

    model: TrainableModel
    """What is trained."""
    method: Method[Any]
    """How."""
    world: World
    """The processes that share the batch."""
    autocast: bool
    """Whether convolutions compute in bfloat16."""

    def __call__(self, low: Tensor, high: Tensor, iteration: int) -> Gradients:
        """Losses and gradients.

        Args:
            low: float32 [N, 3, H, W] in 0..255.
            high: float32 [N, 3, scale*H, scale*W] in 0..255, the target.
            iteration: 0-based.
        """
        self.method.begin_iteration(self.model, iteration)
        return self.passes(low, high, iteration)

    def passes(self, low: Tensor, high: Tensor, iteration: int) -> Gradients:
        """The part that runs on the device: forward and backward, without asking for any value."""
        with self.model.recording() if self.method.records_features else nullcontext():
            with bfloat16_convolutions(low.device, self.autocast):
                output = self.model(low)
            step = Step(self.model, low, high, output.float(), iteration, self.world, self.autocast)
            return gradients(self.method, step)


def follow(model: TrainableModel, optimizer: torch.optim.Optimizer, combined: Mapping[str, Tensor]) -> None:
    """One step of `optimizer` along the gradients `combined`, by parameter name; then quantizers are projected."""
    for name, parameter in model.parameters().items():
        parameter.grad = combined.get(name)
    optimizer.step()
    model.project()
