"""Crops side by side: the input, bicubic, float, quantized, the ground truth, and what differs; as inline PNG."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb, Sample
from odm_deploy.imaging.resize import imresize
from odm_deploy.proof.evaluation import Upscale, upscale_pixels
from odm_deploy.proof.metrics import psnr_y

CROP_PX = 48
"""Side of a crop in input pixels."""
AMPLIFIED = 8
"""How many times larger than they are the differences are shown."""


@dataclass(frozen=True)
class Panel:
    """One picture with what is written below it."""

    caption: str
    png: str
    """A data URI."""
    pixelated: bool = False
    """Whether enlarging it should show its pixels."""


@dataclass(frozen=True)
class CropRow:
    """All pictures of one place in one image."""

    name: str
    panels: tuple[Panel, ...]


def crop_row(sample: Sample, scale: int, quantized: Upscale, real: Upscale | None = None) -> CropRow:
    """The pictures of the place with most detail in `sample`.

    PSNR in a caption is of the whole image, against ground truth. Differences are shown against the float network
    where there is one, else against ground truth, else against bicubic.

    Args:
        sample: the image, with its ground truth where there is one.
        scale: output pixels per input pixel.
        quantized: the bundle on its runtime.
        real: the float network.
    """
    height, width = sample.low.shape[:2]
    place = _most_detailed(sample.low, min(CROP_PX, height, width))
    bicubic = imresize(sample.low, size=(height * scale, width * scale))
    result = upscale_pixels(quantized, sample.low)
    shown = {"bicubic": bicubic}
    if real is not None:
        shown["float"] = upscale_pixels(real, sample.low)
    shown["quantized"] = result
    large = tuple(slice(edge.start * scale, edge.stop * scale) for edge in place)
    panels = [Panel("input", png_uri(sample.low[place]), pixelated=True)]
    panels += [
        Panel(_captioned(name, image, sample.truth, scale), png_uri(image[large])) for name, image in shown.items()
    ]
    against, other = ("float", shown.get("float")) if real is not None else ("ground truth", sample.truth)
    if other is None:
        against, other = "bicubic", bicubic
    if sample.truth is not None:
        panels.append(Panel("ground truth", png_uri(sample.truth[large])))
    difference = np.abs(result[large].astype(np.int16) - other[large]) * AMPLIFIED
    panels.append(Panel(f"|quantized − {against}| × {AMPLIFIED}", png_uri(difference.clip(0, 255).astype(np.uint8))))
    return CropRow(sample.name, tuple(panels))


def png_uri(image: Rgb) -> str:
    """uint8 [H, W, 3] as a `data:` URI of a PNG."""
    stream = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(image)).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _captioned(name: str, image: Rgb, truth: Rgb | None, scale: int) -> str:
    if truth is None:
        return name
    try:
        return f"{name}, {psnr_y(image, truth, scale):.2f} dB"
    except InputError:
        # Too small for a border to be left out.
        return name


def _most_detailed(image: Rgb, side: int) -> tuple[slice, slice]:
    """The square whose neighbouring pixels differ most: flat places look alike whatever made them."""
    luma = image.astype(np.float64).mean(2)
    detail = np.abs(np.diff(luma, axis=0, append=luma[-1:])) + np.abs(np.diff(luma, axis=1, append=luma[:, -1:]))
    # A summed-area table gives the detail of every square at once.
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = (int(index) for index in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + side), slice(left, left + side)
