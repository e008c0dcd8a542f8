"""What a training step is: one forward pass, the losses, the gradient to follow, and following it with Adam.

There are a learning rate for weights and one for each kind of quantizer parameter, schedules that depend on the
iteration only, and a moving average of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from odm_deploy.errors import UsageError
from training.acceleration import bfloat16_convolutions
from training.distributed import World
from training.methods.base import Gradients, Method, Step, gradients
from training.model import TrainableModel
from training.quantizers.base import Kind
from training.recipe import OptimizerSection


@dataclass(frozen=True)
class GradientStep:
    """Computes the gradients of an iteration from its batch; see `RunSection` for how."""

    model: TrainableModel
    method: Method[Any]
    world: World
    autocast: bool
    channels_last: bool = False

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
        if self.channels_last:
            low = low.contiguous(memory_format=torch.channels_last)
        recording = self.model.recording() if self.method.records_features else nullcontext()
        with recording, self.method.passes(self.model):
            with bfloat16_convolutions(low.device, self.autocast):
                output = self.model(low)
            step = Step(self.model, low, high, output.float(), iteration, self.world, self.autocast)
            return gradients(self.method, step)


def follow(
    model: TrainableModel, optimizer: torch.optim.Adam, combined: Mapping[str, Tensor], broken: Tensor | None = None
) -> None:
    """One step of `optimizer` along the gradients `combined`, by parameter name; then quantizers are projected.

    Where `broken`, float32 [] on the device, is 1 there, the step is left out without asking; on GPUs only.
    """
    for name, parameter in model.parameters().items():
        parameter.grad = combined.get(name)
    if broken is not None:
        # What a gradient scaler of torch tells a fused optimizer.
        cast("Any", optimizer).found_inf = broken
    optimizer.step()
    model.project()


def build_optimizer(
    model: TrainableModel, settings: OptimizerSection, at_weights_rate: Set[Kind] = frozenset()
) -> torch.optim.Adam:
    """Adam over weights and, each kind at its own rate, quantizer parameters; on a GPU in one kernel.

    Raises:
        UsageError: a rate for a kind that the model has none of.
    """
    kinds, trained = model.quantizer_parameters(), model.parameters()
    there = sorted(set(kinds.values()))
    for kind in settings.rates:
        if kind not in there:
            raise UsageError(
                f"cannot use optimizer.rates.{kind}",
                why=f"this method learns {', '.join(there) or 'weights only'}",
                fix="leave it out",
            )
    rates: dict[Kind, float] = {}
    for kind in there:
        plain = settings.learning_rate if kind in at_weights_rate else settings.range_learning_rate
        rates[kind] = settings.rates.get(kind, plain)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained.items() if name not in kinds], "rate": settings.learning_rate}
    ]
    # A group a rate, not a kind: states of runs from before there were kinds can be resumed.
    for rate in dict.fromkeys(rates.values()):
        members = [p for name, p in trained.items() if name in kinds and rates[kinds[name]] == rate]
        groups.append({"params": members, "rate": rate})
    return torch.optim.Adam(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        eps=1e-8,
        fused=next(iter(trained.values())).is_cuda,
    )


def rate_factor(settings: OptimizerSection, iteration: int, iterations: int) -> float:
    """Factor on the learning rates at a 0-based iteration of a run of `iterations`."""
    warmup = min(1.0, (iteration + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "halving":
        return warmup * 0.5 ** (iteration // settings.halve_every)
    if settings.schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * iteration / iterations))
    return warmup


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor


class MovingAverage:
    """Exponential moving average of all parameters, with the bias of its start removed; a decay of 0 keeps none."""

    def __init__(self, model: TrainableModel, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}
        if decay:
            self.values = {name: parameter.detach().clone() for name, parameter in model.parameters().items()}

    @torch.no_grad()
    def update(self, model: TrainableModel, iteration: int) -> None:
        """Take in the parameters after a 0-based iteration."""
        if not self.values:
            return
        # A young average would otherwise remember the start for 1 / (1 - decay) iterations.
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        pairs = [(self.values[name], p) for name, p in model.parameters().items() if name in self.values]
        if pairs:
            averages, parameters = map(list, zip(*pairs, strict=True))
            cast("Any", torch)._foreach_lerp_(averages, parameters, 1.0 - decay)

    def weights(self, model: TrainableModel) -> dict[str, Tensor]:
        """The state dict to validate and freeze: averaged parameters where there is an average."""
        state = {name: value.detach().clone() for name, value in model.network.state_dict().items()}
        state.update({name: value.clone() for name, value in self.values.items()})
        return state
