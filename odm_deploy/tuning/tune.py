"""What follows calibration: mixed widths and fine-tuning where they are asked for, and the figures in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Say, Track, counted, silent, untracked
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import LayerSummary
from odm_deploy.tuning.finetuning import Budget, FineTuned, fine_tune
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, OutputCost
from odm_deploy.tuning.mixed_widths import MixedWidths, keep_goal
from odm_deploy.tuning.sensitivity import LayerSensitivity, layer_sensitivities
from odm_deploy.tuning.unfinished import Unfinished

Calibrated = tuple[QuantizedModel, Sequence[LayerSummary]]
Calibrate = Callable[[QuantizationPolicy, bool], Calibrated]
"""Widths, and whether layers make up for those in front of them (`CalibrationSettings.in_sequence`)."""


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
    policy: QuantizationPolicy,
    calibrated: Calibrate,
    held_back: HeldBack,
    *,
    goal: Goal | None = None,
    budget: Budget | None = None,
    images: Iterable[Tensor] = (),
    unfinished: Unfinished | None = None,
    track: Track = untracked,
    say: Say = silent,
) -> Tuned:
    """Calibrate a model, mix widths until it keeps a goal, fine-tune it, and measure what quantization cost.

    Widths are mixed of layers that were fitted each for itself. Once they are chosen, the network is calibrated again
    with them, and layers make up for those in front. Training comes last: what it wins at a width is little beside what
    layers lose by being mixed with others than they were trained with.

    Args:
        network: the float network.
        policy: what is quantized, before anything is widened or left float.
        calibrated: calibrates the network, as `calibrate` does.
        held_back: images to judge by.
        goal: what to keep; None: nothing.
        budget: how long to fine-tune; None: not at all.
        images: network inputs to fine-tune on, float32 [1, 3, H, W] in 0..255.
        unfinished: where fine-tuning keeps what it has so far, as in `fine_tune`.
        track: for progress bars.
        say: takes lines of talk.

    Raises:
        GateError: the goal cannot be kept.
        InputError, UsageError: as `fine_tune` and `keep_goal`.
    """
    wide = widened(policy)
    apart = goal is not None and wide is not None
    known: dict[str, LayerSummary] = {}
    wider: dict[str, LayerSummary] = {}

    def made(widths: QuantizationPolicy, in_sequence: bool, noted: dict[str, LayerSummary]) -> QuantizedModel:
        found, of_layers = calibrated(widths, in_sequence)
        noted.update({each.name: each for each in of_layers})
        return found

    def make_wide() -> QuantizedModel:
        assert wide is not None
        say("calibrating at 8 bits, too")
        return made(wide, not apart, wider)

    if goal is not None:
        # Known before minutes of work rather than after.
        goal.check(with_truth=held_back.has_truth)
    model = made(policy, not apart, known)
    fine_tuned = mixed = None
    if goal is not None:
        try:
            mixed = keep_goal(network, model, held_back, goal, wide=make_wide if wide else None, track=track, say=say)
        except InputError as error:
            if goal.float_share is None:
                raise
            # Nobody asked for it.
            say(f"no layer stays float for quality: {error}")
    if goal is not None and mixed is not None:
        known.update({name: wider[name] for name in mixed.widened})
        if mixed.model.exact is None and (apart or mixed.in_float):
            say("calibrating again, with the widths chosen")
            mixed = _fitted_again(mixed, made(_chosen(policy, mixed), True, known), held_back, goal)
        model = mixed.model
    cost = held_back.measure(model)
    if budget is not None:
        fine_tuned = fine_tune(network, model, list(images), budget, unfinished=unfinished, track=track, say=say)
        model, cost = _better(model, cost, fine_tuned, held_back, goal, say)
    if mixed is not None:
        mixed = dataclasses.replace(mixed, model=model, after=cost)
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


def _chosen(policy: QuantizationPolicy, mixed: MixedWidths) -> QuantizationPolicy:
    """The policy with the widths that a search chose."""
    overrides: dict[str, LayerBits | None] = dict.fromkeys(mixed.widened, LayerBits(MAX_BITS, MAX_BITS))
    overrides.update(dict.fromkeys(mixed.in_float))
    return dataclasses.replace(policy, overrides={**policy.overrides, **overrides})


def _fitted_again(mixed: MixedWidths, model: QuantizedModel, held_back: HeldBack, goal: Goal) -> MixedWidths:
    """The same widths with another calibration, where that is no further from float and keeps what was kept."""
    after = held_back.measure(model)
    if after.psnr_db < mixed.after.psnr_db or len(goal.misses(after)) > len(goal.misses(mixed.after)):
        return mixed
    return dataclasses.replace(mixed, model=model, after=after)


def _better(
    model: QuantizedModel, cost: OutputCost, fine_tuned: FineTuned, held_back: HeldBack, goal: Goal | None, say: Say
) -> tuple[QuantizedModel, OutputCost]:
    """The fine-tuned model, unless on held-back images it is further from float, or misses a goal that was kept."""
    after = held_back.measure(fine_tuned.model)
    missed = [] if goal is None or goal.misses(cost) else goal.misses(after)
    better = after.psnr_db >= cost.psnr_db and not missed
    say(
        f"fine-tuning, {counted(fine_tuned.steps, 'step')}: {cost.psnr_db:.1f} -> {after.psnr_db:.1f} dB between float "
        f"and quantized output" + ("" if better else "; not better, so the calibrated model is kept")
    )
    return (fine_tuned.model, after) if better else (model, cost)


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
