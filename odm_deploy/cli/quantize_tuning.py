"""The options of `quantize` about quality: goals, fine-tuning, and what it says in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.options import group
from odm_deploy.terminal import say

if TYPE_CHECKING:
    from pathlib import Path

    from odm_deploy.tuning.drawings import DrawingCosts
    from odm_deploy.tuning.finetuning import Budget
    from odm_deploy.tuning.goals import Goal
    from odm_deploy.tuning.tune import Tuned

tuning_options = group(
    click.option(
        "--max-drop",
        "max_drop_db",
        type=float,
        metavar="DB",
        help="Lose at most this much PSNR against the images, to be expected from those held back: the fewest layers "
        "stay float, or get 8 bits in models of fewer. Images that the network restores much better than yours may "
        "lose twice as much. Exit code 3 where it cannot be kept.",
    ),
    click.option(
        "--min-psnr",
        "min_psnr_db",
        type=float,
        metavar="DB",
        help="The same for the PSNR between float and quantized output; needs no images of high resolution. 45: "
        "invisible.",
    ),
    click.option(
        "--most-float",
        "most_float_percent",
        type=click.FloatRange(0, 100),
        metavar="PERCENT",
        help="At 8 bits and without a goal: so much of the work may stay float where more than 0.015 dB would be lost "
        "(with --lr: where the output is less than 50 dB from float's). Only the layers that cost most do; not with "
        "--layer, nor in profiles with 8-bit sums or exact. 0: none.  [default: 30, or 50 where more than 0.02 dB "
        "would be lost]",
    ),
    click.option(
        "--finetune",
        "finetune_minutes",
        type=float,
        metavar="MINUTES",
        help="Train on for so long, with the float network as the only teacher, once a goal is kept. Ctrl-C ends "
        "it early and keeps it. After a kill the same command goes on, from a file beside the result that ends in "
        ".unfinished.",
    ),
)
"""What is done after calibration; `to_goal` and `to_budget` read them."""


def to_goal(options: Mapping[str, Any]) -> Goal | None:
    """What has to be kept. Raises UsageError for figures that mean nothing."""
    from odm_deploy.tuning.goals import Goal

    if options["max_drop_db"] is None and options["min_psnr_db"] is None:
        return None
    return Goal(options["max_drop_db"], options["min_psnr_db"])


def to_budget(options: Mapping[str, Any]) -> Budget | None:
    """How long to fine-tune. Raises UsageError for no time."""
    from odm_deploy.tuning.finetuning import Budget

    minutes = options["finetune_minutes"]
    return None if minutes is None else Budget(minutes=minutes)


def say_cost(tuned: Tuned, drawings: DrawingCosts, model: Path, *, held_back: bool) -> None:
    """What quantization cost in a `model` just written, which layers cost most, and what to do about it."""
    from odm_deploy.tuning.text import advice, areas_text, cost_text, lettering_text, mixed_text, worst_text

    if tuned.mixed is not None:
        say(mixed_text(tuned.mixed, model))
    say(
        cost_text(tuned.cost)
        + ("" if held_back else " (seen in calibration, too; of five images or more, some are held back)")
    )
    if drawings.lettering is not None:
        say(lettering_text(drawings.lettering, drawings.float_alone))
    if drawings.areas is not None:
        say(areas_text(drawings.areas))
    if worst := worst_text(tuned.sensitivities):
        say(worst)
    chosen = tuned.mixed is not None and bool(tuned.mixed.widened or tuned.mixed.in_float)
    if todo := advice(tuned.cost, tuned.sensitivities, exact=tuned.model.exact is not None, chosen=chosen):
        say(todo)


def cost_documents(tuned: Tuned, drawings: DrawingCosts) -> dict[str, Any]:
    """The keys of `quantize --json` about quality."""
    from odm_deploy.tuning.text import areas_document, cost_document, sensitivity_document

    mixed, fine_tuned = tuned.mixed, tuned.fine_tuned
    return {
        "cost": cost_document(tuned.cost),
        "lettering": None if drawings.lettering is None else cost_document(drawings.lettering),
        "lettering_float_alone": None if drawings.float_alone is None else cost_document(drawings.float_alone),
        "colours": None if drawings.areas is None else areas_document(drawings.areas),
        "sensitivity": sensitivity_document(tuned.sensitivities),
        "mixed_widths": None
        if mixed is None
        else {
            "before": cost_document(mixed.before),
            "widened": mixed.widened,
            "in_float": mixed.in_float,
            "quantized_macs_before": mixed.quantized_share_before,
            "quantized_macs": mixed.quantized_share,
            "share_of": mixed.share_of,
        },
        "fine_tuning": None
        if fine_tuned is None
        else {
            "steps": fine_tuned.steps,
            "first_loss": fine_tuned.first_loss,
            "last_loss": fine_tuned.last_loss,
            "interrupted": fine_tuned.interrupted,
        },
    }
