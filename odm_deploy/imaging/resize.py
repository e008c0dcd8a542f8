"""MATLAB's bicubic `imresize`, to the bit: what every public low-resolution test image was made with.

Other libraries' "bicubic" differs in the kernel (a = -0.75 instead of -0.5), leaves out the antialiasing or rounds only
once; networks measured on such images lose tenths of a decibel that have nothing to do with the network.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError

_KERNEL_WIDTH = 4.0


def imresize(
    image: NDArray[np.uint8],
    scale: Fraction | float | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Resize by cubic convolution as MATLAB's `imresize(image, scale, "bicubic")` does for uint8.

    Samples sit at pixel centres, borders are mirrored (half-sample symmetric), and when shrinking the kernel is
    stretched by the factor. The dimension that shrinks most goes first, rows before columns when both shrink alike, and
    the intermediate image is rounded and clamped to uint8 like the final one: halves round up.

    Args:
        image: uint8 [H, W] or [H, W, C].
        scale: output size over input size, both dimensions alike; the output has ceil(scale * size) pixels. A Fraction
            such as `Fraction(1, 3)` avoids an accidental extra pixel from the float's rounding.
        size: (height, width) of the output instead of `scale`.

    Returns:
        uint8, the resized image, with as many dimensions as `image`.

    Raises:
        InputError: `image` is not a non-empty uint8 [H, W] or [H, W, C] array.
        UsageError: not exactly one of `scale` and `size`, or one that is not positive.

    Equal to the public low-resolution files in every byte at 1/2 and 1/4, where all weights are dyadic and the sums
    therefore exact. At other factors a sum that should be a half may come out just below, its pixel one step off.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, eq. 15 (a = -1/2).
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise InputError(
            "cannot resize this array", why=f"got {image.dtype} {list(image.shape)}", fix="hand over uint8 [H, W, C]"
        )
    factors = _factors((image.shape[0], image.shape[1]), scale, size)
    result = image
    for axis in sorted((0, 1), key=lambda axis: factors[axis][1]):
        length, factor = factors[axis]
        indices, weights = _contributions(image.shape[axis], length, factor)
        result = _resampled(result, axis, indices, weights)
    return result


def downscale(image: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the low-resolution partner of a high-resolution image, as the public test sets were made.

    Args:
        image: uint8 [H, W, 3], the high-resolution image.
        scale: how many high-resolution pixels make one low-resolution pixel, along each axis.

    Returns:
        (low, high): uint8 [H // scale, W // scale, 3], and `image` cropped at bottom and right to exactly `scale` times
        that, a view.

    Raises:
        InputError: the image is smaller than one low-resolution pixel.
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    if height == 0 or width == 0:
        raise InputError(
            f"cannot downscale an image by {scale}",
            why=f"it has only {image.shape[1]}x{image.shape[0]} pixels",
            fix="use larger images",
        )
    high = image[: height * scale, : width * scale]
    return imresize(high, Fraction(1, scale)), high


def _factors(
    shape: tuple[int, int], scale: Fraction | float | None, size: tuple[int, int] | None
) -> list[tuple[int, float]]:
    """(output length, factor) of each axis."""
    if (scale is None) == (size is None):
        raise UsageError("cannot resize", why=f"scale={scale} and size={size}", fix="give exactly one of them")
    if size is not None:
        if min(size) < 1:
            raise UsageError("cannot resize", why=f"size={size}", fix="give a height and a width of at least 1")
        return [(new, new / old) for new, old in zip(size, shape, strict=True)]
    assert scale is not None
    if not 0 < scale < math.inf:
        raise UsageError("cannot resize", why=f"scale={scale}", fix="give a positive factor")
    return [(math.ceil(scale * old), float(scale)) for old in shape]


@lru_cache(maxsize=64)
def _contributions(old: int, new: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which input samples make each output sample: indices and weights, both [taps, new]."""
    stretch = min(factor, 1.0)
    width = _KERNEL_WIDTH / stretch
    # 1-based like the original, so that the floating-point rounding of the centres is the same.
    centres = np.arange(1, new + 1, dtype=np.float64) / factor + 0.5 * (1 - 1 / factor)
    first = np.floor(centres - width / 2)
    taps = math.ceil(width) + 2
    positions = first[:, None] + np.arange(taps)
    weights = stretch * _cubic(stretch * (centres[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate([np.arange(old), np.arange(old - 1, -1, -1)])
    indices = mirror[(positions.astype(np.intp) - 1) % (2 * old)]
    used = weights.any(axis=0)
    return np.ascontiguousarray(indices[:, used].T), np.ascontiguousarray(weights[:, used].T)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def _resampled(
    image: NDArray[np.uint8], axis: int, indices: NDArray[np.intp], weights: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Weighted sum of the indexed samples along `axis`, rounded half up and clamped to uint8."""
    shape = [1] * image.ndim
    shape[axis] = -1
    first = image.take(indices[0], axis=axis)
    total = np.zeros(first.shape, np.float64)
    for tap, weight in zip(indices, weights, strict=True):
        total += weight.reshape(shape) * image.take(tap, axis=axis)
    return np.clip(np.floor(total + 0.5), 0, 255).astype(np.uint8)
