"""What `quantize` and `sensitivity` start from alike: float weights, and images that become the network's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.options import Command, group
from odm_deploy.errors import OdmError
from odm_deploy.progress import Track, steps, untracked
from odm_deploy.terminal import say

if TYPE_CHECKING:
    from odm_deploy.networks.base import SuperResolutionNetwork
    from odm_deploy.quantization.calibration_images import CalibrationImages


def image_options(text: str, count: int) -> Callable[[Command], Command]:
    """`--images` with `text` as its help, how many of them, and what of each; fields of `inputs_of`."""
    return group(
        click.option("--images", "image_source", required=True, metavar="DIR", type=click.Path(), help=text),
        click.option(
            "--max-images", default=count, show_default=True, type=click.IntRange(min=1), help="Use at most this many."
        ),
        click.option(
            "--lr", "low_resolution", is_flag=True, help="The images are network inputs already: don't downscale them."
        ),
        click.option(
            "--crop",
            "crop_px",
            metavar="PX",
            type=click.IntRange(min=8),
            help="Use the middle of inputs that are larger; bounds memory and time.  [default: 256, in exact profiles "
            "64, less for networks that would take many minutes]",
        ),
    )


def require_weights(path: Path) -> None:
    """See that there is a file of float weights, before what could read it is imported. Raises as `require_file`."""
    from odm_deploy.files import require_file

    require_file(path, "a file of float weights is wanted")


def load_float(
    weights: Path,
    network: str | None,
    scale: int | None,
    settings: Mapping[str, Any],
    paths: Sequence[Path],
    track: Track = untracked,
) -> SuperResolutionNetwork:
    """The float network of some weights, told how images go into it; says so where that was found by trying."""
    from odm_deploy.imaging.reading import read_rgb
    from odm_deploy.networks.loading import load_network
    from odm_deploy.quantization.input_format import settle_input_format

    with steps(track, (1,), f"loading {weights.name}"):
        loaded = load_network(weights, network=network, scale=scale, settings=settings)
    loaded, told = settle_input_format(loaded, settings, map(read_rgb, paths), track)
    if told:
        say(told)
    return loaded


def inputs_of(
    network: SuperResolutionNetwork,
    paths: Sequence[Path],
    low_resolution: bool,
    crop_px: int | None,
    *,
    refined: bool = False,
) -> CalibrationImages:
    """The images as inputs of a network; says so where it is so large that less of each is used.

    Grids that are chosen among few and `refined` by the output need less of each.
    """
    from odm_deploy.quantization.calibration_images import CROP_PX, REFINED_CROP_PX, CalibrationImages
    from odm_deploy.tuning.effort import CALIBRATION_MACS, affordable_px, macs_of

    if crop_px is None:
        most_px = REFINED_CROP_PX if refined else CROP_PX
        crop_px = affordable_px(network, len(paths), CALIBRATION_MACS, most_px)
        if crop_px < most_px:
            macs = macs_of(network) / 1e6
            say(f"a network of {macs:.1f} million multiply-adds a pixel: the middle {crop_px}x{crop_px} of each input")
    return CalibrationImages(paths, 1 if low_resolution else network.scale, crop_px)


def check_smallest(network: SuperResolutionNetwork, images: CalibrationImages) -> None:
    """Refuse an image of which too little is left, by the name of its file, before the minutes of work.

    Raises:
        InputError, UsageError: the network does not run on it, or nothing of it can be compared.
    """
    from odm_deploy.networks.running import run_network
    from odm_deploy.proof.metrics import psnr_y
    from odm_deploy.quantization.calibration_images import SMALL_PX

    smallest = images.smallest()
    for path, (low, high) in zip(smallest.paths, smallest.pairs(), strict=True):
        if min(low.shape[2:]) >= SMALL_PX:
            continue
        try:
            run_network(network, low)
            if high is not None:
                psnr_y(high, high, network.scale)
        except OdmError as error:
            raise type(error)(f"cannot calibrate on {path}", why=str(error)) from error
