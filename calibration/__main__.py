"""`python -m calibration`: float weights and images in, `model.pt` out.

Heavy imports wait until the command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from odm_deploy.errors import UsageError
from odm_deploy.terminal import emit_json, json_option, progress, run, say
from odm_deploy.version import __version__


def _key_values(option: str) -> Any:
    """A click callback that turns repeated KEY=VALUE texts into a dict."""

    def parse(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
        pairs = [text.partition("=") for text in texts]
        if wrong := [
            text for text, (key, sign, value) in zip(texts, pairs, strict=True) if not (key and sign and value)
        ]:
            raise UsageError(f"{option} {wrong[0]} is not KEY=VALUE")
        return {key: value for key, _, value in pairs}

    return parse


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("weights", type=click.Path(path_type=Path))
@click.option(
    "--network",
    "network_name",
    required=True,
    metavar="NAME",
    help="Architecture of the weights: edsr, rdn, srresnet, swinir; spandrel, which tells its own by the keys; or your "
    "own, package.module:Name, whose code is then run.",
)
@click.option("--scale", required=True, type=click.IntRange(min=1), help="Upscaling factor of the weights.")
@click.option("--bits", required=True, metavar="WIDTH", help="Width of the body: 2 to 8, or w4a8.")
@click.option("--images", "image_source", required=True, metavar="DIR", help="Images to calibrate on.")
@click.option("-o", "output", default="model.pt", show_default=True, type=click.Path(path_type=Path), help="Result.")
@click.option(
    "--method",
    type=click.Choice(["mse", "minmax", "percentile"]),
    help="How activation ranges are chosen.  [default: mse, or percentile where --percentile is given]",
)
@click.option("--percentile", type=click.FloatRange(50, 100, min_open=True), help="For --method percentile.")
@click.option(
    "--weight-scales",
    "weight_method",
    type=click.Choice(["mse", "max"]),
    default="mse",
    show_default=True,
    help="Weight scales by the smallest squared error, or by the largest weight.",
)
@click.option("--weights", "old_weight_method", type=click.Choice(["mse", "max"]), hidden=True)
@click.option("--per-layer-weights", is_flag=True, help="One weight scale per layer instead of per output channel.")
@click.option("--head", metavar="WIDTH", help="Width of the first convolution.  [default: float; exact: 8]")
@click.option("--body-end", metavar="WIDTH", help="Width of what follows the last block.  [default: float; exact: 8]")
@click.option("--tail", metavar="WIDTH", help="Width of the upsampler and what follows.  [default: float; exact: 8]")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME=WIDTH",
    callback=_key_values("--layer"),
    help="Width of a layer, by name or pattern (body.0.*=8); repeatable, later ones win.",
)
@click.option("--free", is_flag=True, help="Activation grids need not hold zero (Eq. 1 of the ODM paper as written).")
@click.option(
    "--exact-sums/--no-exact-sums",
    default=True,
    show_default=True,
    help="Scales with few significant bits where they make every sum exact on every runtime (up to 7 bits).",
)
@click.option(
    "--profile",
    default="paper",
    show_default=True,
    metavar="NAME",
    help="paper: the body, ordinary scales; exact: everything, dyadic scales, the same bits on every runtime.",
)
@click.option("--max-images", default=32, show_default=True, type=click.IntRange(min=1), help="Use at most this many.")
@click.option(
    "--lr", "low_resolution", is_flag=True, help="The images are network inputs already: don't downscale them."
)
@click.option(
    "--crop",
    "crop_px",
    default=256,
    show_default=True,
    metavar="PX",
    type=click.IntRange(min=8),
    help="Use the middle of inputs that are larger; bounds memory.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_key_values("--set"),
    help="A hyper-parameter of the network that its weights do not show.",
)
@json_option
def command(
    weights: Path,
    network_name: str,
    scale: int,
    bits: str,
    image_source: str,
    output: Path,
    method: str | None,
    percentile: float | None,
    weight_method: str,
    old_weight_method: str | None,
    per_layer_weights: bool,
    head: str | None,
    body_end: str | None,
    tail: str | None,
    layers: dict[str, str],
    free: bool,
    exact_sums: bool,
    profile: str,
    max_images: int,
    low_resolution: bool,
    crop_px: int,
    overrides: dict[str, str],
    as_json: bool,
) -> None:
    """Quantize float WEIGHTS after training: watch the network on images, choose ranges, write model.pt."""
    from calibration.images import CalibrationImages, choose_images
    from odm_deploy.checkpoint import save_model
    from odm_deploy.files import file_sha256
    from odm_deploy.networks.loading import load_network
    from odm_deploy.quantization.policy import QuantizationPolicy
    from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
    from odm_deploy.quantization.ranges import RangeMethod

    started = time.monotonic()
    # Everything that can be wrong about the call is found before the minutes of work, not after.
    if output.is_dir():
        raise UsageError(f"cannot write {output}", why="it is a folder", fix=f"name a file: -o {output / 'model.pt'}")
    if percentile is not None and method not in (None, "percentile"):
        raise UsageError(f"--percentile says nothing about --method {method}", fix="drop one of the two")
    method = method or ("mse" if percentile is None else "percentile")
    if old_weight_method is not None:
        say(f"--weights {old_weight_method} is spelled --weight-scales {old_weight_method} now")
        weight_method = old_weight_method
    policy = QuantizationPolicy.parse(
        profile,
        bits,
        head=head,
        body_end=body_end,
        tail=tail,
        overrides=layers,
        per_channel=not per_layer_weights,
        free=free,
    )
    settings = {key: _plain(value) for key, value in overrides.items()}
    network = load_network(weights, network=network_name, scale=scale, settings=settings)
    paths = choose_images(image_source, max_images)
    images = CalibrationImages(paths, 1 if low_resolution else scale, crop_px)
    ranges = CalibrationSettings(RangeMethod(method), percentile or 99.99, weight_method == "mse", exact_sums)
    metadata = {
        "method": f"post-training, {method}",
        "profile": profile,
        "bits": bits,
        "weights_file": weights.name,
        "weights_sha256": file_sha256(weights),
        "images": len(images),
        "odm_deploy": __version__,
    }

    with progress("calibrating") as track:
        refining = partial(track, stage="refining grids")
        model, summaries = calibrate(network, track(images, len(images)), policy, ranges, metadata, refining)
    save_model(model, output)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        emit_json(
            {
                "model": str(output),
                "network": network_name,
                "scale": scale,
                "bits": bits,
                "profile": profile,
                "method": method,
                "images": len(images),
                "exact_sums": model.metadata["exact_sums"],
                "layers": [dataclasses.asdict(summary) for summary in summaries],
                "seconds": seconds,
            }
        )
    else:
        say(f"{output}: {len(summaries)} layers quantized, {method} ranges from {len(images)} images, {seconds} s")


def _plain(text: str) -> Any:
    """`0.1`, `8`, `true` as the value they spell, anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    run(command, "python -m calibration")
