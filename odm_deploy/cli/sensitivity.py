"""`odm-deploy sensitivity`: what quantizing each layer costs at the output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.calibration_inputs import image_options, inputs_of, load_float, require_weights
from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import refuse_options, trust_option, weights_options
from odm_deploy.cli.quantize_options import policy_options, range_options, to_policy, to_settings
from odm_deploy.errors import UsageError
from odm_deploy.terminal import emit_json, json_option, print_table, progress, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from odm_deploy.networks.base import SuperResolutionNetwork
    from odm_deploy.progress import Track
    from odm_deploy.quantization.calibration_images import CalibrationImages
    from odm_deploy.quantization.model import QuantizedModel
    from odm_deploy.tuning.sensitivity import LayerSensitivity

_PATH = click.Path(path_type=Path)


@click.command("sensitivity", context_settings={"max_content_width": 110})
@click.argument("source", metavar="MODEL.pt|WEIGHTS", type=_PATH)
@image_options("Images to measure on.", 8)
@click.option("--against", type=_PATH, metavar="WEIGHTS", help="Of a model.pt: the float weights it was made of.")
@weights_options
@policy_options
@range_options
@click.option("--plot", type=_PATH, metavar="FILE.svg", help="Also draw the layers, in network order.")
@trust_option
@json_option
def command(
    source: Path,
    image_source: str,
    against: Path | None,
    network: str | None,
    scale: int | None,
    settings: dict[str, Any],
    max_images: int,
    low_resolution: bool,
    crop_px: int | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what quantizing each layer costs at the output while all others stay float, most expensive first.

    Float WEIGHTS are quantized first, as odm-deploy quantize does, at --bits. A MODEL.pt holds no float weights: give
    them by --against; without, what is shown is the cost of rounding each layer's input. Figures are first-order
    estimates, which rank layers; --max-drop of odm-deploy quantize measures.
    """
    from odm_deploy.files import check_file, write_text
    from odm_deploy.imaging.reading import choose_images

    if plot is not None and plot.suffix.lower() != ".svg":
        raise UsageError(f"cannot draw {plot}", why="the plot is an SVG file", fix="end its name in .svg")
    if plot is not None:
        check_file(plot)
    require_weights(source)
    paths = choose_images(image_source, max_images)
    with slow_imports():
        from odm_deploy.checkpoint import is_model, load_model
        from odm_deploy.networks.loading import load_same
        from odm_deploy.quantization.calibration_images import CROP_PX
        from odm_deploy.tuning.sensitivity import float_inputs, layer_sensitivities
        from odm_deploy.tuning.text import sensitivity_document, sensitivity_table

    with progress("images") as track:
        if is_model(source):
            names, fix = (*options, "network", "scale", "settings"), "leave it out, or name float weights"
            refuse_options(names, source, "it is quantized already", fix)
            model = load_model(source)
            if against is None:
                say("the model holds no float weights: this is the cost of rounding inputs; --against WEIGHTS has all")
            floats = float_inputs(model) if against is None else load_same(against, model.network)
        else:
            if against is not None:
                raise UsageError(
                    f"--against with {source}",
                    why="it holds float weights itself",
                    fix="name a model.pt, or leave it out",
                )
            floats = load_float(source, network, scale, settings, paths, track)
            model = _quantized(floats, inputs_of(floats, paths, low_resolution, crop_px), options, track)
        images = inputs_of(floats, paths, low_resolution, crop_px or CROP_PX)
        found = layer_sensitivities(floats, model, list(images), track)
    if plot is not None:
        write_text(plot, _plot(found))
        say(f"wrote {plot}")
    if as_json:
        emit_json({"model": str(source), "images": len(paths), "layers": sensitivity_document(found)})
    else:
        print_table(sensitivity_table(found))


def _plot(found: Sequence[LayerSensitivity]) -> str:
    """The layers' shares of the error, in network order, as an SVG file."""
    from odm_deploy.report.svg import Bar, bar_chart, standalone

    total = sum(each.error for each in found) or 1.0
    bars = [Bar(each.name, each.error / total, f"{each.error / total:.1%}") for each in found]
    return standalone(bar_chart(bars, "Share of the error at the output, if each layer alone is quantized"))


def _quantized(
    network: SuperResolutionNetwork, images: CalibrationImages, options: Mapping[str, Any], track: Track
) -> QuantizedModel:
    """What calibration makes of a float network."""
    from odm_deploy.quantization.post_training import calibrate

    policy, ranges = to_policy(options, options["profile"]), to_settings(options)
    model, _ = calibrate(network, images, policy, ranges, track=track)
    return model
