"""PSNR and SSIM as the super-resolution literature reports them.

Both take uint8 [H, W, 3] RGB, the image to judge first, then the ground truth. They look at luma alone and ignore a
border of `shave` pixels on every side, by convention the scale, since a network cannot know what lies beyond the image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb

# ITU-R BT.601 luma of 8-bit RGB in 16..235. Published PSNR numbers come from EDSR's code, which divides by 256;
# published SSIM numbers from MATLAB's rgb2ycbcr, which divides by 255. Both conventions are kept as they are.
_LUMA = np.array([65.738, 129.057, 25.064]) / 256
_MATLAB_LUMA = np.array([65.481, 128.553, 24.966]) / 255

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2


def psnr_y(sr: Rgb, hr: Rgb, shave: int) -> float:
    """Peak signal-to-noise ratio of luma, in dB; infinite for images of equal luma.

    Raises:
        InputError: the shapes differ, or nothing is left inside the border.

    Source: B. Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", 2017: the protocol of
    its public code, which later papers follow.
    """
    sr, hr = _inner(sr, hr, shave)
    # The offset of luma cancels; the difference is taken first because it is exact in integers.
    squared = luma_energy(sr.astype(np.int16) - hr)
    return math.inf if squared == 0 else 10 * math.log10(255**2 / squared)


def psnr_rgb(sr: Rgb, hr: Rgb, shave: int) -> float:
    """Peak signal-to-noise ratio over all three colours, in dB: what DIV2K is judged by, with `shave` = scale + 6.

    Raises and source as `psnr_y`.
    """
    sr, hr = _inner(sr, hr, shave)
    squared = float(np.mean((sr.astype(np.int16) - hr).astype(np.float64) ** 2))
    return math.inf if squared == 0 else 10 * math.log10(255**2 / squared)


def luma_energy(difference: NDArray[Any]) -> float:
    """Mean square of luma of a difference of images, [H, W, 3]."""
    return float(np.mean((difference @ _LUMA) ** 2))


def ssim_y(sr: Rgb, hr: Rgb, shave: int) -> float:
    """Structural similarity of luma, at most 1, averaged over every 11x11 window that lies inside the border.

    MATLAB's definition: luma unrounded, a Gaussian window of sigma 1.5, K = (0.01, 0.03), L = 255.

    Raises:
        InputError: the shapes differ, or less than 11x11 pixels are left inside the border.

    Source: Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13.
    """
    sr, hr = _inner(sr, hr, shave, smallest=_SSIM_WINDOW)
    x, y = (16 + image @ _MATLAB_LUMA for image in (sr, hr))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return float((luminance * structure).mean())


def _windowed(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian-weighted mean of every window lying wholly inside: [H, W] -> [H - 10, W - 10]."""
    offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    gaussian = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    gaussian /= gaussian.sum()
    height, width = image.shape[0] - _SSIM_WINDOW + 1, image.shape[1] - _SSIM_WINDOW + 1
    rows = sum(weight * image[tap : tap + height] for tap, weight in enumerate(gaussian))
    assert isinstance(rows, np.ndarray)
    columns = sum(weight * rows[:, tap : tap + width] for tap, weight in enumerate(gaussian))
    assert isinstance(columns, np.ndarray)
    return columns


def _inner(a: Rgb, b: Rgb, shave: int, smallest: int = 1) -> tuple[Rgb, Rgb]:
    """Both images without their border, after checking that they can be compared."""
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise InputError(
            "cannot compare two images",
            why=f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}",
            fix="both must be uint8 [H, W, 3] of one size",
        )
    height, width = a.shape[0] - 2 * shave, a.shape[1] - 2 * shave
    if min(height, width) < smallest:
        raise InputError(
            "cannot compare two images",
            why=f"{a.shape[1]}x{a.shape[0]} pixels without a border of {shave} leave less than {smallest}x{smallest}",
            fix="use larger images",
        )
    inside = slice(shave, shave + height), slice(shave, shave + width)
    return a[inside], b[inside]
