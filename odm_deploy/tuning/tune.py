"""What follows calibration: fine-tuning and mixed widths where they are asked for, and the figures in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import LayerSummary
from odm_deploy.tuning.finetuning import Budget, FineTuned, fine_tune
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, OutputCost
from odm_deploy.tuning.mixed_widths import MixedWidths, keep_goal
from odm_deploy.tuning.sensitivity import LayerSensitivity, layer_sensitivities

Calibrated = tuple[QuantizedModel, Sequence[LayerSummary]]


@dataclass(frozen=True)
class Tuned:
    """A calibrated model after all that was asked for, and what it costs."""

    model: QuantizedModel
    summaries: list[LayerSummary]
    """Of its quantized layers, in network order."""
    cost: OutputCost
    sensitivities: list[LayerSensitivity]
    """In network order; empty where they could not be told."""
    fine_tuned: FineTuned | None
    mixed: MixedWidths | None


def tune(
    network: SuperResolutionNetwork,
    calibrated: Calibrated,
    held_back: HeldBack,
    *,
    goal: Goal | None = None,
    budget: Budget | None = None,
    images: Iterable[Tensor] = (),
    widen: Callable[[], Calibrated] | None = None,
    track: Track = untracked,
    say: Say = silent,
) -> Tuned:
    """Fine-tune a calibrated model, mix widths until it keeps a goal, and measure what quantization cost.

    Args:
        network: the float network.
        calibrated: its quantized form, as `calibrate` returns it.
        held_back: images to judge by.
        goal: what to keep; None: nothing.
        budget: how long to fine-tune; None: not at all.
        images: network inputs to fine-tune on, float32 [1, 3, H, W] in 0..255.
        widen: calibrates the same network at more bits (`widened`); None where there are no more.
        track: for progress bars.
        say: takes lines of talk.

    Raises:
        GateError: the goal cannot be kept.
        InputError, UsageError: as `fine_tune` and `keep_goal`.
    """
    model, summaries = calibrated
    known = {each.name: each for each in summaries}
    wider: dict[str, LayerSummary] = {}

    def wide() -> QuantizedModel:
        assert widen is not None
        say("calibrating at 8 bits, too")
        found, of_layers = widen()
        wider.update({each.name: each for each in of_layers})
        return found

    fine_tuned = mixed = None
    if goal is not None:
        # Known before minutes of work rather than after.
        goal.check(held_back.measure(model))
    if budget is not None:
        fine_tuned = fine_tune(network, model, list(images), budget, track=track, say=say)
        model = _better(model, fine_tuned, held_back, say)
    if goal is not None:
        mixed = keep_goal(network, model, held_back, goal, wide=wide if widen else None, track=track, say=say)
        model = mixed.model
        known.update({name: wider[name] for name in mixed.widened})
    cost = held_back.measure(model) if mixed is None else mixed.after
    if mixed is not None and goal is not None and goal.float_share is not None and not mixed.in_float:
        # Nobody asked for it, and nothing came of it.
        mixed = None
    sensitivities: list[LayerSensitivity] = []
    try:
        sensitivities = layer_sensitivities(network, model, held_back.lows, track)
    except InputError as error:
        # The model is good all the same.
        say(f"not known which layers cost most: {error}")
    return Tuned(model, _refreshed(known, model), cost, sensitivities, fine_tuned, mixed)


def widened(policy: QuantizationPolicy) -> QuantizationPolicy | None:
    """The policy with 8 bits where it has fewer, apart from layers named one by one; None where it has no fewer."""

    def wide(bits: LayerBits | None) -> LayerBits | None:
        return None if bits is None else LayerBits(MAX_BITS, MAX_BITS)

    body = wide(policy.body)
    assert body is not None
    found = dataclasses.replace(
        policy, body=body, body_end=wide(policy.body_end), tail=wide(policy.tail), head=wide(policy.head)
    )
    return None if found == policy else found


def _better(model: QuantizedModel, fine_tuned: FineTuned, held_back: HeldBack, say: Say) -> QuantizedModel:
    """The fine-tuned model, unless it is further from float than the calibrated one on images neither has seen."""
    before, after = held_back.measure(model).psnr_db, held_back.measure(fine_tuned.model).psnr_db
    better = after >= before
    say(
        f"fine-tuning, {fine_tuned.steps} steps: {before:.1f} -> {after:.1f} dB between float and quantized output"
        + ("" if better else "; not better, so the calibrated model is kept")
    )
    return fine_tuned.model if better else model


def _refreshed(known: Mapping[str, LayerSummary], model: QuantizedModel) -> list[LayerSummary]:
    """Summaries of the layers that are quantized, with the grids they have now."""
    return [
        dataclasses.replace(
            known[name],
            lower=layer.grid.lower,
            upper=layer.grid.upper,
            bits=layer.grid.bits,
            weight_bits=layer.weight_bits,
            zero_point=layer.grid.zero_point,
        )
        for name, layer in model.layers.items()
    ]
