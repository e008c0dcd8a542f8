"""PSNR and SSIM over the images of a set, by the protocol of the super-resolution literature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from odm_deploy.imaging.pairs import ImagePair, Rgb
from odm_deploy.proof.metrics import psnr_y, ssim_y
from odm_deploy.proof.upscalers import Upscale, upscale_pixels


@dataclass(frozen=True)
class Score:
    """Mean over images."""

    psnr_y_db: float
    """Peak signal-to-noise ratio of luma, in dB."""
    ssim_y: float
    """Structural similarity of luma."""


@dataclass
class Quality:
    """PSNR and SSIM against ground truth, image by image."""

    psnr_y_db: list[float] = field(default_factory=list[float])
    ssim_y: list[float] = field(default_factory=list[float])

    def add(self, output: Rgb, truth: Rgb, shave: int) -> None:
        """Measure one image; `shave` border pixels are left out, by convention the scale.

        Raises:
            InputError: the sizes differ, or less than 11x11 pixels are left inside the border.
        """
        self.psnr_y_db.append(psnr_y(output, truth, shave))
        self.ssim_y.append(ssim_y(output, truth, shave))

    @property
    def mean(self) -> Score:
        """Over all images, of which there must be one."""
        return Score(float(np.mean(self.psnr_y_db)), float(np.mean(self.ssim_y)))

    def to_dict(self) -> dict[str, float | None]:
        """Means; None where there was no ground truth."""
        return {**asdict(self.mean)} if self.psnr_y_db else {"psnr_y_db": None, "ssim_y": None}


def evaluate(upscale: Upscale, pairs: Iterable[ImagePair], scale: int) -> Quality:
    """Upscale the images of a benchmark set, round to 8 bits, and measure; `scale` border pixels are left out.

    Raises:
        InputError: an output that is not finite, or not of its ground truth's size.
    """
    quality = Quality()
    for pair in pairs:
        quality.add(upscale_pixels(upscale, pair.low), pair.high, scale)
    return quality
