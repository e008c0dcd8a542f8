"""`odm-deploy upscale IN OUT --model BUNDLE`: one image, whole or in tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odm_deploy.cli.output import emit_json, json_option, progress, say

if TYPE_CHECKING:
    from odm_deploy.manifest import Manifest

WHOLE_IMAGE_LIMIT_PX = 1_000_000
"""Largest input that is run whole unless --tile says otherwise; a quarter of a gigabyte of activations per layer."""
DEFAULT_TILE_PX = 512


@click.command("upscale")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("destination", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", "bundle", type=click.Path(path_type=Path), required=True, help="A bundle.")
@click.option("--tile", type=click.IntRange(0), help="Tile size in input pixels; 0: whole. [default: whole if small]")
@click.option("--runtime", help="Run on this runtime. [default: the fastest that works]")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@json_option
def command(
    source: Path,
    destination: Path,
    bundle: Path,
    tile: int | None,
    runtime: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Upscale the image IN to OUT (.png, .jpg or .webp).

    Tiles overlap by the network's receptive field, so that the seams are those of the whole image: none.
    """
    import time

    import numpy as np

    from odm_deploy.engine import Engine
    from odm_deploy.imaging.io import Image, check_writable, read_image, write_image
    from odm_deploy.manifest import read_manifest
    from odm_deploy.runtimes.base import RuntimeOptions

    check_writable(destination)
    manifest = read_manifest(bundle)
    image = read_image(source)
    size = _tile_size(tile, image.height, image.width, manifest)
    start = time.perf_counter()
    with Engine.open(bundle, runtime, RuntimeOptions(threads=threads)) as engine, progress("tiles") as track:
        rgb = engine.upscale(image.rgb, tile=size, track=track)
        alpha = None
        if image.alpha is not None:
            # Transparency is an image of its own; as gray RGB it goes through the same network.
            gray = np.repeat(image.alpha[..., None], 3, axis=2)
            alpha = engine.upscale(gray, tile=size, track=track)[..., 1]
        described = engine.describe()
        for reason in engine.runtime.passed_over:
            say(f"passed over: {reason}")
    seconds = time.perf_counter() - start
    write_image(destination, Image(rgb, alpha, image.gray, image.icc_profile))
    if as_json:
        emit_json(
            {
                "input": str(source),
                "output": str(destination),
                "size": [rgb.shape[1], rgb.shape[0]],
                "tile": size,
                "runtime": described,
                "seconds": seconds,
            }
        )
    else:
        say(f"wrote {destination}: {rgb.shape[1]}x{rgb.shape[0]}, {seconds:.2f} s on {described['runtime']}")


def _tile_size(asked: int | None, height: int, width: int, manifest: Manifest) -> int:
    """The tile size to use; 0 runs the image whole."""
    if asked is not None:
        return asked
    radius = manifest.receptive_radius_px
    if radius is None or height * width <= WHOLE_IMAGE_LIMIT_PX:
        return 0
    return max(DEFAULT_TILE_PX, 4 * radius)
