"""A parity report for people: one line, tables, markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from odm_deploy.progress import counted
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.layer_parity import LayerParity
from odm_deploy.proof.parity_report import NO_GATES, Distance, Gates, ParityReport, floor_text
from odm_deploy.proof.visibility import visibility
from odm_deploy.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

WORST_LAYERS = 5

_HEAD = ("", "runtime", "noise floor / reference")
_LAYER_HEAD = ("layer", "flips per million", "on ties", "floor", "largest step")


def verdict(report: ParityReport, gates: Gates = NO_GATES) -> str:
    """The one line that matters."""
    failures = report.failures(gates)
    name = report.runtime.get("runtime", "the runtime")
    if failures:
        return f"{name} does NOT compute the reference: {'; '.join(failures)}"
    distance = report.distance
    if distance.differing == 0:
        return f"{name} computes the reference, bit for bit, on {_images(report)}"
    seen = visibility(distance.psnr_db, distance.max_lsb)
    apart = (
        f"{distance.psnr_db:.1f} dB apart, {seen} (noise floor {floor_text(report.furthest_floor_db)}; "
        f"{distance.identical:.2%} of the values identical, none further than {_steps(distance.max_lsb)} apart)"
    )
    if report.layers and not report.deviating_layers:
        return (
            f"{name} computes the reference, layer by layer; rounding ties then spread, and leave the pictures {apart}"
        )
    if gates == NO_GATES:
        return f"{name} computes the reference, as far as rounding lets it compute itself: the pictures are {apart}"
    return f"{name} meets the gates: the pictures are {apart}"


def rows(report: ParityReport) -> list[tuple[str, str, str]]:
    """Figure, runtime against reference, and the same for the noise floor."""
    reference, runtime = report.reference_quality.to_dict(), report.runtime_quality.to_dict()
    table = [(f"constants of {graph.file}", _constants(graph), "") for graph in report.graphs]
    table += [
        (name, found, floor)
        for (name, found), (_, floor) in zip(_distance(report.distance), _distance(report.floor), strict=True)
    ]
    if report.draws:
        draws = ", ".join(f"{draw.psnr_db:.1f}" for draw in report.draws)
        table.append(("PSNR of jittered draws", "", f"{draws} dB"))
    if runtime["psnr_y_db"] is not None:
        table.append(
            ("PSNR-Y, runtime / reference", f"{runtime['psnr_y_db']:.3f} dB", f"{reference['psnr_y_db']:.3f} dB")
        )
        table.append(("SSIM-Y, runtime / reference", f"{runtime['ssim_y']:.4f}", f"{reference['ssim_y']:.4f}"))
    return table


def summary_table(report: ParityReport) -> Table:
    """End-to-end figures beside the noise floor."""
    return table(f"{report.runtime.get('runtime')} on {_images(report)}", _HEAD, rows(report))


def worst_layers_table(report: ParityReport) -> Table:
    """The layers whose codes flip most often, teacher-forced."""
    worst = sorted(report.layers, key=lambda layer: -layer.flip_rate)[:WORST_LAYERS]
    title = f"codes that flip, worst {len(worst)} of {counted(len(report.layers), 'layer')}"
    return table(title, _LAYER_HEAD, ((layer.name, *_layer_figures(layer)) for layer in worst))


def to_markdown(report: ParityReport, gates: Gates = NO_GATES) -> str:
    """The whole report as markdown."""
    lines = [f"**{verdict(report, gates)}**", "", *markdown_table(_HEAD, rows(report))]
    if report.layers:
        layers = ((f"`{layer.name}`", *_layer_figures(layer)) for layer in report.layers)
        lines += ["", *markdown_table(_LAYER_HEAD, layers)]
    described = ", ".join(f"{key} {value}" for key, value in report.runtime.items() if value != "")
    return "\n".join([*lines, "", f"Runtime: {described}.", ""])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is flush left and the others right."""
    titles = "".join(f" {name} |" if name else " |" for name in head)
    return [f"|{titles}", f"|---|{'---:|' * (len(head) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _layer_figures(layer: LayerParity) -> list[str]:
    """Flips, those on rounding ties and those of the reference itself, per million codes; and the largest step."""
    rates = (layer.flip_rate, layer.tie_flip_rate, layer.floor_flip_rate)
    return [*(f"{rate * 1e6:.2f}" for rate in rates), str(layer.max_step)]


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _constants(graph: GraphCheck) -> str:
    """How many are what the model.pt lowers to."""
    wired = ", wired otherwise" if graph.remark else ""
    return f"{graph.compared - len(graph.constants)} of {graph.compared}{wired}"


def _images(report: ParityReport) -> str:
    return f"{report.images} image{'' if report.images == 1 else 's'}"


def _distance(distance: Distance) -> list[tuple[str, str]]:
    psnr = "identical" if math.isinf(distance.psnr_db) else f"{distance.psnr_db:.1f} dB"
    return [
        ("identical values", f"{distance.identical:.4%}"),
        ("largest difference", f"{distance.max_lsb} of 255"),
        ("PSNR between the outputs", psnr),
    ]
