"""Draw what a bundle makes of a sample image: the input's pixels, bicubic, the bundle, and the original, side by side.

    python tools/readme_picture.py demo/edsr_baseline_x4_w4a4 -o docs/upscaled.png

All four show the same place of an image that `tools/make_samples.py` drew, so that the picture may be shipped.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from toolbox import COMMAND, SAMPLES

from odm_deploy import Engine
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.imaging.resize import imresize
from odm_deploy.imaging.writing import write_image
from odm_deploy.proof.metrics import psnr_y
from odm_deploy.terminal import run, say

GAP_PX = 8

Pixels = NDArray[np.uint8]


@click.command(context_settings=COMMAND)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="PNG file to write.")
@click.option("--sample", default="street", show_default=True, help="Name of a sample image.")
@click.option(
    "--place", nargs=3, type=int, default=(8, 18, 50), show_default=True, help="Left, top and side in input pixels."
)
def command(bundle: Path, output: Path, sample: str, place: tuple[int, int, int]) -> None:
    """Draw one place of a sample image as BUNDLE upscales it, beside the input, bicubic and the original."""
    low = read_rgb(SAMPLES / "LR_bicubic" / "X4" / f"{sample}x4.png")
    high = read_rgb(SAMPLES / "HR" / f"{sample}.png")
    scale = high.shape[0] // low.shape[0]
    with Engine.open(bundle) as engine:
        panels = {
            "input": low.repeat(scale, axis=0).repeat(scale, axis=1),
            "bicubic": imresize(low, size=high.shape[:2]),
            "bundle": engine.upscale(low, bits=8),
            "original": high,
        }
    for name in ("bicubic", "bundle"):
        say(f"{name}: {psnr_y(panels[name], high, scale):.2f} dB on the whole image")
    left, top, side = (value * scale for value in place)
    write_image(output, beside([panel[top : top + side, left : left + side] for panel in panels.values()]))


def beside(panels: list[Pixels]) -> Pixels:
    """Panels of one height in a row, white between them."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)


if __name__ == "__main__":
    run(command, "readme_picture")
