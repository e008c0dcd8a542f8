"""Fine-tuning: some minutes of quantization-aware training with the float network as the only teacher.

The calibrated model learns to give the float network's output on random parts of the user's own images. Nothing else
is asked of it, no ground truth: networks trained with an adversary keep the look they were trained for. What stays
float is not touched. Learning rates are relative to rounding steps, so that they suit anybody's network and any width:
what moves fine codes by several steps is noise, and what moves coarse ones too little never reaches the next.

Where a file for it is given, everything that the next step depends on is kept there now and then, and a killed run goes
on to the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.networks.replacing import replace_modules
from odm_deploy.networks.running import run_network
from odm_deploy.progress import PercentStage, Say, Track, counted, silent, untracked
from odm_deploy.quantization.exact.freeze import freeze_exact
from odm_deploy.quantization.exact.sums import with_exact_sums
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.operation_signals import ended_by_anything
from odm_deploy.quantization.signal_calibration import on_sum_units
from odm_deploy.quantization.signals import attach, replace_layer
from odm_deploy.tuning.examples import Examples, batch_size
from odm_deploy.tuning.learnable_layers import LearnableLayer, PassingSignal
from odm_deploy.tuning.unfinished import Unfinished

KEPT_EVERY_S = 30.0
"""Seconds of training that a kill may cost."""
WEIGHT_RATE = 0.01
"""Learning rate of weights, in steps between their layer's codes: about 1e-4 for EDSR's at 4 bits, 3e-4 at 2."""
RANGE_RATE = 0.03
"""Learning rate of ranges, in steps between their levels, and of clipping bounds, in steps between codes."""
BIAS_RATE = 0.001
"""Learning rate of biases, in units of what a step of all codes makes of the layer's products."""


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes, or steps where the same result is wanted every time.

    Raises:
        UsageError: neither or both, or nothing.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None) or not 0 < (self.minutes or self.steps or 0) < math.inf:
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
    unfinished: Unfinished | None = None,
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
        unfinished: where to keep what was learned so far, and to go on from what is there. It stays when all is done:
            whoever writes the model removes it then.
        track: for a progress bar.
        say: takes lines of talk.
        seed: of the examples drawn.

    Raises:
        InputError: no image, or a loss that is not finite.
        InputError, UsageError: as `Unfinished.load`.
    """
    if not images:
        raise InputError("nothing to fine-tune on", why="there is no image", fix="give --images more images")
    run = _Run(network, model, images, budget, seed)
    if unfinished is not None and (state := unfinished.load()) is not None:
        run.restore(state)
        say(f"going on behind the {counted(len(run.losses), 'step')} of fine-tuning in {unfinished.path}")
    interrupted = False
    try:
        left = 100 - run.percent()
        stage = "fine-tuning" if left == 100 else f"the last {left} % of fine-tuning"
        # Without those that were done before, which took no time in this run.
        for _ in track(run.hundredths(unfinished), left, PercentStage(stage)):
            pass
    except KeyboardInterrupt:
        interrupted = True
        say(f"fine-tuning ended after {counted(len(run.losses), 'step')}; keeping what was learned")
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
        self._examples = Examples(images, batch_size(network), seed)
        self._seconds = 0.0
        """Of training before this run."""

    def hundredths(self, unfinished: Unfinished | None) -> Generator[int]:
        """Train; yields once for each further hundredth of the budget used."""
        started, yielded = time.monotonic(), self.percent()
        kept = started
        while True:
            now = time.monotonic()
            seconds = self._seconds + now - started
            used = self._used(seconds)
            if unfinished is not None and self.losses and (now - kept >= KEPT_EVERY_S or used >= 1.0):
                unfinished.save(self.state(seconds))
                kept = now
            while yielded < min(int(100 * used), 100):
                yielded += 1
                yield yielded
            if used >= 1.0:
                return
            self._step(used)

    def percent(self) -> int:
        """Hundredths of the budget that were used before this run."""
        return min(int(100 * self._used(self._seconds)), 100)

    def state(self, seconds: float) -> dict[str, Any]:
        """All that the next step depends on, after so many seconds of training."""
        return {
            "layers": {name: layer.state_dict() for name, layer in self.layers.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": self._examples.random.get_state(),
            "losses": self.losses,
            "seconds": seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name, layer in self.layers.items():
            layer.load_state_dict(state["layers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._examples.random.set_state(state["random"])
        self.losses, self._seconds = list(state["losses"]), float(state["seconds"])

    def frozen(self) -> QuantizedModel:
        """The model of what was learned, proven or with short scales where the calibrated one was."""
        layers = {name: layer.freeze() for name, layer in self.layers.items()}
        weights = {name: layer.weight.detach() for name, layer in self.layers.items()}
        metadata = {**self.model.metadata, "fine_tuning_steps": len(self.losses)}
        # What is not quantized stays as calibration left it; only plain layers can be replaced by frozen ones.
        network = copy.deepcopy(self.model.network)
        signals = {name: signal.grid for name, signal in self.model.signals.items()}
        replace_modules(network, {name: self.float_layers.get_submodule(name) for name in layers})
        if self.model.exact is not None:
            return freeze_exact(freeze(network, layers, metadata, signals), weights)
        if metadata.get("exact_sums"):
            exact = with_exact_sums(layers, weights)
            layers, metadata["exact_sums"] = exact or layers, exact is not None
        return freeze(network, on_sum_units(layers, signals), metadata, signals)

    def _step(self, used: float) -> None:
        low = self._examples.draw()
        with torch.no_grad():
            expected = run_network(self.teacher, low)
        self.optimizer.zero_grad(set_to_none=True)
        # Other people's code overwrites, as by `x *= y`, what gradients need.
        with ended_by_anything(), allow_mutation_on_saved_tensors():
            loss = F.l1_loss(self.student(low), expected)
            value = loss.item()
            if not math.isfinite(value):
                after = counted(len(self.losses), "step")
                raise InputError("fine-tuning diverged", why=f"the loss is {value} after {after}")
            try:
                loss.backward()
            except RuntimeError as error:
                raise InputError(
                    f"no gradients pass through {self.teacher.title}, so it cannot be fine-tuned",
                    why=str(error).splitlines()[0][:200],
                ) from error
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1.0 + math.cos(math.pi * used))
        self.optimizer.step()
        for layer in self.layers.values():
            layer.project()
        self.losses.append(value)

    def _used(self, seconds: float) -> float:
        """Share of the budget, after so many seconds of training."""
        if self.budget.steps is not None:
            return len(self.losses) / self.budget.steps
        return seconds / (60.0 * (self.budget.minutes or 0.0))

    def _make_learnable(self) -> dict[str, LearnableLayer]:
        floats = dict(self.float_layers.named_modules())
        shared = [signal.grid for signal in self.model.signals.values()]
        exact = self.model.exact is not None
        layers: dict[str, LearnableLayer] = {}
        for name, frozen in self.model.layers.items():
            # What reads a signal keeps to its grid, and zero stays in the middle where calibration put it there.
            is_fixed = (
                frozen.grid in shared
                or frozen.grid.is_symmetric
                or (exact and self.student.region_of(name) is Region.HEAD)
            )
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
        codes, grid = layer.frozen.weight_codes, layer.frozen.grid
        step = codes.step * float(codes.scale.mean())
        ranges = [each for each in (layer.lower, layer.upper) if each.requires_grad]
        groups += [
            {"params": [layer.weight], "rate": WEIGHT_RATE * step},
            {"params": ranges, "rate": RANGE_RATE / (2**grid.bits - 1)},
            {"params": [layer.bound], "rate": RANGE_RATE / (2**codes.bits - 1)},
        ]
        if layer.bias is not None:
            fan_in = layer.weight[0].numel()
            groups.append({"params": [layer.bias], "rate": BIAS_RATE * step * fan_in**0.5 * float(layer.range_unit)})
    return groups
