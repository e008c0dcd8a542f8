"""What quantization cost, in words: the figure, the layers that cost most, and what to do about them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from odm_deploy.grid import MAX_BITS
from odm_deploy.progress import counted
from odm_deploy.proof.visibility import HARDLY_VISIBLE_DB, INVISIBLE_DB, visibility
from odm_deploy.quantization.policy import LayerBits
from odm_deploy.terminal import table
from odm_deploy.tuning.drawings import AreaCost
from odm_deploy.tuning.held_back import OutputCost
from odm_deploy.tuning.mixed_widths import MixedWidths
from odm_deploy.tuning.sensitivity import MACS, LayerSensitivity

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

SMALL_DROP_DB = 0.03
"""A loss against the truth that no benchmark table shows."""
NOTICEABLE_DB = 1.0
"""How much further from float than all images together one of them is that is named."""
VISIBLE_TINT = 4.0
"""A change of an even area, in 8-bit steps, that is told."""
UNSTABLE_TINT = 1.0
"""A change of an even area by noise of half a step: the float network makes more of it than there is."""
_WORST = 5
_NAMED = 3
_WIDEST = (LayerBits(MAX_BITS, MAX_BITS), LayerBits(MAX_BITS, MAX_BITS).for_any_cpu())


def cost_text(cost: OutputCost) -> str:
    """One line: what quantization cost."""
    images = f"{cost.images} image{'' if cost.images == 1 else 's'}"
    if math.isinf(cost.psnr_db):
        return f"cost, on {images}: nothing, float and quantized output are equal"
    seen = visibility(cost.psnr_db, round(cost.largest))
    if cost.psnr_db >= INVISIBLE_DB and seen != "invisible":
        # Else 59 dB, hardly visible, would contradict 47 dB, invisible.
        seen += f" (a value is {round(cost.largest)} of 255 off)"
    text = f"cost, on {images}: {cost.psnr_db:.1f} dB between float and quantized output{_worst(cost)}, {seen}"
    if cost.drop_db is not None:
        text += (
            f"; against the originals {cost.float_psnr_y_db:.2f} -> {cost.quantized_psnr_y_db:.2f} dB "
            f"({-cost.drop_db:+.3f}{_uncancelled(cost)})"
        )
    return text


def lettering_text(cost: OutputCost, float_alone: OutputCost | None = None) -> str:
    """One line: what quantization did to small lettering, and where it shows, what helps.

    Args:
        cost: of the quantized network.
        float_alone: what noise of half a step does to the float network's.
    """
    if math.isinf(cost.psnr_db):
        return "small lettering: float and quantized output are equal"
    text = f"small lettering: {cost.psnr_db:.1f} dB, a value is {round(cost.largest)} of 255 off"
    if float_alone is not None and float_alone.psnr_db < HARDLY_VISIBLE_DB:
        return f"{text}; the float network is unstable there: {float_alone.psnr_db:.1f} dB by noise of half a step"
    seen = visibility(cost.psnr_db, round(cost.largest))
    return text + ("" if seen == "invisible" else "; images of it among --images, at the size of inputs (--lr), help")


def areas_text(areas: Sequence[AreaCost]) -> str:
    """One line: what quantization did to areas of one colour, and where it shows, what helps."""
    worst = max(areas, key=lambda area: area.largest)
    if worst.largest < VISIBLE_TINT:
        return f"areas of one colour: at most {worst.largest:.1f} of 255 off"
    tinted = sorted((area for area in areas if area.largest >= VISIBLE_TINT), key=lambda area: -area.largest)
    text = f"areas of one colour, of 255 off: {', '.join(f'{area.name} {area.largest:.0f}' for area in tinted)}"
    if unstable := [area for area in tinted if area.float_alone >= UNSTABLE_TINT]:
        of = "all" if len(unstable) == len(tinted) else ", ".join(area.name for area in unstable)
        most = max(area.float_alone for area in unstable)
        text += f"; the float network is unstable on {of}: up to {most:.0f} by noise of half a step"
    return text + ("" if len(unstable) == len(tinted) else "; images of such areas among --images may help")


def _worst(cost: OutputCost) -> str:
    """The image that is worse than all of them together, where it shows."""
    worst = cost.worst
    if worst is None or worst.psnr_db > cost.psnr_db - NOTICEABLE_DB:
        return ""
    return f" ({worst.psnr_db:.1f} on {worst.name}{', seen in calibration' if worst.seen else ''})"


def _uncancelled(cost: OutputCost) -> str:
    expected = cost.expected_drop_db
    # Where these images lose more than is reckoned for others, a smaller loss would contradict it; and nothing is none.
    if expected is None or expected == cost.drop_db or round(expected, 3) <= 0:
        return ""
    return f"; {-expected:+.3f} may be lost on others"


def advice(
    cost: OutputCost, sensitivities: Sequence[LayerSensitivity], *, exact: bool = False, chosen: bool = False
) -> str:
    """One line: what to do about it; empty where there is nothing worth doing.

    `exact` models have no float layers. Where widths were `chosen` by what layers cost, none are named: with `--layer`
    those would be chosen anew, or not at all, and more be lost.
    """
    if not sensitivities or (cost.psnr_db >= INVISIBLE_DB and (cost.expected_drop_db or 0.0) <= SMALL_DROP_DB):
        return ""
    widths = {
        each.name: str(MAX_BITS) if LayerBits(each.weight_bits, each.activation_bits) not in _WIDEST else "float"
        for each in worst_layers(sensitivities)[:2]
    }
    if exact:
        widths = {name: width for name, width in widths.items() if width != "float"}
    if not widths:
        return "to lose less: train on: --finetune 5; or leave layers float, in another profile than exact"
    options = " ".join(f"--layer {name}={width}" for name, width in widths.items())
    loses = (cost.expected_drop_db or 0.0) > SMALL_DROP_DB
    goal = f"--max-drop {SMALL_DROP_DB:g}" if loses else f"--min-psnr {INVISIBLE_DB:g}"
    by_hand = "" if chosen else f"; by hand, {options}"
    return f"to lose less: {goal} finds the layers that need more{by_hand}; or train on: --finetune 5"


def worst_layers(sensitivities: Sequence[LayerSensitivity]) -> list[LayerSensitivity]:
    """The layers, most expensive first."""
    return sorted(sensitivities, key=lambda each: -each.error)


def worst_text(sensitivities: Sequence[LayerSensitivity]) -> str:
    """One line: the layers that cost most, with their share of the error; empty where none costs anything."""
    if not (total := sum(each.error for each in sensitivities)):
        return ""
    worst = [f"{each.name} {each.error / total:.0%}" for each in worst_layers(sensitivities)[:_WORST]]
    return f"most of it: {', '.join(worst)} (odm-deploy sensitivity shows all)"


def sensitivity_table(sensitivities: Sequence[LayerSensitivity], count: int | None = None) -> Table:
    """The `count` layers that cost most (None: all), most expensive first."""
    total = sum(each.error for each in sensitivities) or 1.0
    rows = [
        (
            each.name,
            f"w{each.weight_bits}a{each.activation_bits}",
            "-" if math.isinf(each.psnr_db) else f"{each.psnr_db:.1f} dB",
            f"{each.error / total:.1%}",
            f"{each.macs_share:.1%}",
        )
        for each in worst_layers(sensitivities)[:count]
    ]
    shown = "" if len(rows) == len(sensitivities) else f", {len(rows)} of {len(sensitivities)}"
    head = ("layer", "width", "PSNR if quantized alone", "share of the error", _share_of(sensitivities))
    return table(f"layers that cost most{shown}", head, rows, left=("width",))


def mixed_text(mixed: MixedWidths, model: Path) -> str:
    """One line: what was widened or left float, and the price. `model` is the file that holds all of it."""
    if not (mixed.widened or mixed.in_float):
        share = f"{mixed.quantized_share:.1%} of {mixed.share_of}"
        return f"the goal is kept as it is; {share} are quantized{_not_counted(mixed.share_of)}"
    parts = [
        f"{counted(len(names), 'layer')} {where} ({_first_of(names)})"
        for where, names in (("at 8 bits", mixed.widened), ("in float", mixed.in_float))
        if names
    ]
    bits = {name: layer.weight_bits + layer.grid.bits for name, layer in mixed.model.layers.items()}
    if mixed.widened and all(width >= bits[mixed.widened[0]] for width in bits.values()):
        parts.append("none at fewer bits (--bits 8 has less to search)")
    all_of_them = max(len(mixed.widened), len(mixed.in_float)) > _NAMED
    return (
        f"mixed widths: {_listed(parts)}; quantized share of {mixed.share_of} "
        f"{mixed.quantized_share_before:.1%} -> {mixed.quantized_share:.1%}{_not_counted(mixed.share_of)}"
        + (f" (odm-deploy inspect {shlex.quote(str(model))} names all)" if all_of_them else "")
    )


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _share_of(sensitivities: Sequence[LayerSensitivity]) -> str:
    of = sensitivities[0].share_of if sensitivities else MACS
    return f"share of {of}{_not_counted(of)}"


def _not_counted(share_of: str) -> str:
    return "" if share_of == MACS else " (its code does not run without data, so its MACs are not counted)"


def _first_of(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join([*names[:_NAMED], *([f"{rest} more"] if rest > 0 else [])])


def cost_document(cost: OutputCost) -> dict[str, Any]:
    """The keys of `--json` about the cost."""
    return {
        "images": cost.images,
        "psnr_db": cost.psnr_db,
        "largest": cost.largest,
        "float_psnr_y_db": cost.float_psnr_y_db,
        "quantized_psnr_y_db": cost.quantized_psnr_y_db,
        "drop_db": cost.drop_db,
        "uncancelled_drop_db": cost.uncancelled_drop_db,
        "worst": None
        if cost.worst is None
        else {"image": cost.worst.name, "psnr_db": cost.worst.psnr_db, "seen": cost.worst.seen},
    }


def areas_document(areas: Sequence[AreaCost]) -> list[dict[str, Any]]:
    """The keys of `--json` about areas of one colour."""
    return [{"colour": area.name, "change": area.change, "float_alone": area.float_alone} for area in areas]


def sensitivity_document(sensitivities: Sequence[LayerSensitivity]) -> list[dict[str, Any]]:
    """The keys of `--json` about layers, in network order."""
    return [
        {
            "name": each.name,
            "weight_bits": each.weight_bits,
            "activation_bits": each.activation_bits,
            "mse": each.error,
            "psnr_db": each.psnr_db,
            "macs_share": each.macs_share,
            "share_of": each.share_of,
        }
        for each in sensitivities
    ]
