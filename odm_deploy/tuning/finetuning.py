"""Fine-tuning: some minutes of quantization-aware training with the float network as the only teacher.

The calibrated model learns to give the float network's output on random parts of the user's own images. Nothing else
is asked of it, no ground truth: networks trained with an adversary keep the look they were trained for. What stays
float is not touched. Learning rates are relative to the size of what they move, so that they suit anybody's network.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.accounting import count_macs
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.quantization.exact.freeze import freeze_exact
from odm_deploy.quantization.exact.sums import with_exact_sums
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.signals import attach, replace_layer
from odm_deploy.tuning.learnable_layers import LearnableLayer, PassingSignal

PATCH_PX = 48
"""Height and width of a training example: a multiple of what window attention needs."""
MOST_BATCH = 4
STEP_MACS = 8e9
"""Multiply-adds of the network's forward pass on a batch: large networks get smaller batches, and more steps."""
WEIGHT_RATE = 3e-3
"""Learning rate of weights, in units of their layer's root mean square; 1e-4 for EDSR's."""
RANGE_RATE = 2e-3
"""Learning rate of ranges and clipping bounds, in units of their first width."""
BIAS_RATE = 3e-4
"""Learning rate of biases, in units of what the layer's products are about."""


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes, or steps where the same result is wanted every time.

    Raises:
        UsageError: neither or both, or nothing.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None) or not (self.minutes or self.steps or 0) > 0:
            raise UsageError(f"cannot fine-tune for {self.minutes} minutes", fix="give a number above 0")


@dataclass(frozen=True)
class FineTuned:
    """What came of fine-tuning."""

    model: QuantizedModel
    steps: int
    """Steps made."""
    first_loss: float
    """Mean absolute difference to the teacher over the first tenth of the steps, in 8-bit steps."""
    last_loss: float
    """The same over the last tenth."""
    interrupted: bool
    """Whether Ctrl-C ended it early."""


def fine_tune(
    network: SuperResolutionNetwork,
    model: QuantizedModel,
    images: Sequence[Tensor],
    budget: Budget,
    *,
    track: Track = untracked,
    say: Say = silent,
    seed: int = 0,
) -> FineTuned:
    """Train a calibrated model to give the float network's outputs.

    Args:
        network: the float network, the teacher; left as it is.
        model: its quantized form, where training starts; left as it is. An exact model stays exact.
        images: network inputs, float32 [1, 3, H, W] in 0..255, all held in memory.
        budget: how long. Ctrl-C ends it early and keeps what was learned.
        track: for a progress bar.
        say: takes lines of talk.
        seed: of the examples drawn.

    Raises:
        InputError: no image, or a loss that is not finite.
    """
    if not images:
        raise InputError("nothing to fine-tune on", why="there is no image", fix="give --images more images")
    run = _Run(network, model, images, budget, seed)
    interrupted = False
    try:
        for _ in track(run.hundredths(), 100, "fine-tuning"):
            pass
    except KeyboardInterrupt:
        interrupted = True
        say(f"fine-tuning ended after {len(run.losses)} steps; keeping what was learned")
    tenth = max(len(run.losses) // 10, 1)
    first, last = (sum(part) / max(len(part), 1) for part in (run.losses[:tenth], run.losses[-tenth:]))
    return FineTuned(run.frozen(), len(run.losses), first, last, interrupted)


class _Run:
    """A fine-tuning in progress."""

    def __init__(
        self,
        network: SuperResolutionNetwork,
        model: QuantizedModel,
        images: Sequence[Tensor],
        budget: Budget,
        seed: int,
    ) -> None:
        self.model, self.budget = model, budget
        self.teacher = copy.deepcopy(network).eval().requires_grad_(False)
        self.float_layers = float_form(network, model)
        self.student = copy.deepcopy(model.network).eval().requires_grad_(False)
        self.layers = self._make_learnable()
        self.optimizer = torch.optim.Adam(_groups(self.layers.values()), eps=1e-8)
        self.losses: list[float] = []
        self._draw = _examples(images, _batch_size(network), torch.Generator().manual_seed(seed))

    def hundredths(self) -> Generator[int]:
        """Train; yields once for each hundredth of the budget used."""
        started, yielded = time.monotonic(), 0
        while True:
            used = self._used(started)
            while yielded < min(int(100 * used), 100):
                yielded += 1
                yield yielded
            if used >= 1.0:
                return
            self._step(used)

    def frozen(self) -> QuantizedModel:
        """The model of what was learned, proven or with short scales where the calibrated one was."""
        layers = {name: layer.freeze() for name, layer in self.layers.items()}
        weights = {name: layer.weight.detach() for name, layer in self.layers.items()}
        metadata = {**self.model.metadata, "fine_tuning_steps": len(self.losses)}
        # What is not quantized stays as calibration left it; only plain layers can be replaced by frozen ones.
        network = copy.deepcopy(self.model.network)
        signals = {name: signal.grid for name, signal in self.model.signals.items()}
        for name in layers:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, self.float_layers.get_submodule(name))
        if self.model.exact is not None:
            return freeze_exact(freeze(network, layers, metadata, signals), weights)
        if metadata.get("exact_sums"):
            exact = with_exact_sums(layers, weights)
            layers, metadata["exact_sums"] = exact or layers, exact is not None
        return freeze(network, layers, metadata, signals)

    def _step(self, used: float) -> None:
        low = self._draw()
        with torch.no_grad():
            expected = self.teacher(low)
        loss = F.l1_loss(self.student(low), expected)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError("fine-tuning diverged", why=f"the loss is {value} after {len(self.losses)} steps")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1.0 + math.cos(math.pi * used))
        self.optimizer.step()
        for layer in self.layers.values():
            layer.project()
        self.losses.append(value)

    def _used(self, started: float) -> float:
        """Share of the budget."""
        if self.budget.steps is not None:
            return len(self.losses) / self.budget.steps
        return (time.monotonic() - started) / (60.0 * (self.budget.minutes or 0.0))

    def _make_learnable(self) -> dict[str, LearnableLayer]:
        floats = dict(self.float_layers.named_modules())
        shared = [signal.grid for signal in self.model.signals.values()]
        exact = self.model.exact is not None
        layers: dict[str, LearnableLayer] = {}
        for name, frozen in self.model.layers.items():
            # What reads a signal keeps to its grid.
            is_fixed = frozen.grid in shared or (exact and self.student.region_of(name) is Region.HEAD)
            weight = floats[name].get_parameter("weight")
            layers[name] = LearnableLayer(frozen, weight, power_of_two=exact, fixed_grid=is_fixed)
            replace_layer(self.student, name, layers[name])
        for name, signal in self.model.signals.items():
            attach(self.student, name, PassingSignal(signal.grid))
        return layers


def _groups(layers: Iterable[LearnableLayer]) -> list[dict[str, Any]]:
    """Adam's parameter groups, each with the `rate` its cosine starts from."""
    groups: list[dict[str, Any]] = []
    for layer in layers:
        size = float(layer.weight.detach().square().mean().sqrt()) or 1.0
        ranges = [each for each in (layer.lower, layer.upper, layer.bound) if each.requires_grad]
        groups += [
            {"params": [layer.weight], "rate": WEIGHT_RATE * size},
            {"params": ranges, "rate": RANGE_RATE},
        ]
        if layer.bias is not None:
            fan_in = layer.weight[0].numel()
            groups.append({"params": [layer.bias], "rate": BIAS_RATE * size * fan_in**0.5 * float(layer.range_unit)})
    return groups


def _batch_size(network: SuperResolutionNetwork) -> int:
    """Examples a step, 1 to `MOST_BATCH`."""
    side = PATCH_PX * network.scale
    try:
        macs = sum(count_macs(network, (side, side)).values())
    except InputError:
        # Its code does not run without data; it may be large.
        return 2
    return max(1, min(MOST_BATCH, int(STEP_MACS / max(macs, 1))))


def _examples(images: Sequence[Tensor], batch: int, random: torch.Generator) -> Callable[[], Tensor]:
    """Draws batches of random parts, flipped and transposed at random: float32 [batch, 3, P, P]."""
    patch = min(PATCH_PX, *(size for image in images for size in image.shape[2:]))

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=random))

    def draw() -> Tensor:
        parts: list[Tensor] = []
        for _ in range(batch):
            image = images[number(len(images))]
            top, left = (number(size - patch + 1) for size in image.shape[2:])
            part = image[0, :, top : top + patch, left : left + patch]
            flips = [axis for axis in (1, 2) if number(2)]
            part = part.flip(flips)
            parts.append(part.transpose(1, 2) if number(2) else part)
        return torch.stack(parts)

    return draw
