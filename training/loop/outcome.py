"""What a step came to, loss and gradients that are finite or not, without waiting for the device at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from training.loop.diagnostics import broken_gradients, first_broken_layer
from training.methods.base import Gradients
from training.model import TrainableModel


@dataclass(frozen=True)
class Outcome:
    """Loss and gradient norm of a step, on their way from the device.

    A processor that reads them at once lets a GPU run dry: it reads those of one step while the next one runs. The
    optimizer leaves a broken step out by itself (`broken`), so that nothing is lost by looking later.
    """

    iteration: int
    """0-based."""
    low: Tensor
    """The batch's input, to find the broken layer with."""
    gradients: Gradients
    """What the step computed; recorded steps overwrite it with the next step of the kind."""
    broken: Tensor | None
    """float32 [] on a GPU: 1 where loss or gradients are not finite. None on a CPU, where `check` comes first."""
    _values: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, iteration: int, low: Tensor, gradients: Gradients) -> Outcome:
        """Start the way of the values of a step to the processor."""
        # A norm is NaN or infinite exactly if something in it is (or overflows, which is no better).
        norm = torch.nn.utils.get_total_norm(list(gradients.combined.values()))
        values = torch.stack([gradients.loss.float(), norm.float()])
        if not values.is_cuda:
            return cls(iteration, low, gradients, None, values, None)
        broken = torch.isfinite(values).all().logical_not().float()
        here = torch.empty(2, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(iteration, low, gradients, broken, here, arrived)

    @property
    def loss(self) -> float:
        """The reconstruction loss; waits for it."""
        return self._read()[0]

    def check(self, model: TrainableModel, state: Path) -> None:
        """Refuse a broken step of `model`, whose last whole state is `state`; waits for the step.

        Raises:
            InputError: the loss or a gradient is not finite; the line says where that begins.
        """
        loss, norm = self._read()
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged at iteration {self.iteration}",
                why=f"the loss is {loss}; {first_broken_layer(model, self.low)}",
                fix=f"lower the learning rates and use another --out, or resume from {state}",
            )
        if not math.isfinite(norm):
            raise broken_gradients(self.gradients.combined, self.iteration)

    def _read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
