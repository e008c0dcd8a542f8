"""Luma and chroma of full resolution (4:4:4), 8 bits, to RGB and back: the matrices of ITU-R BT.601 and BT.709."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HD_HEIGHT_PX = 720
"""From this height on players take video that names no matrix for BT.709, below it for BT.601."""

_WEIGHTS = {False: (0.299, 0.114), True: (0.2126, 0.0722)}
"""Of red and blue in luma, by whether the picture is HD."""


def to_rgb(planes: NDArray[np.uint8], *, full_range: bool) -> NDArray[np.uint8]:
    """uint8 [3, H, W] of Y, Cb and Cr -> uint8 [H, W, 3] RGB, rounded and clamped.

    Args:
        planes: luma and chroma, by the matrix that players assume at this height.
        full_range: 0 to 255 in all planes; False: 16 to 235 in luma, 16 to 240 in chroma.
    """
    matrix, offset = _matrix(planes.shape[1], full_range)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    return _applied(inverse, planes.astype(np.float32) - offset[:, None, None]).transpose(1, 2, 0).copy()


def from_rgb(rgb: NDArray[np.uint8], *, full_range: bool) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB -> uint8 [3, H, W], the inverse of `to_rgb` up to rounding."""
    matrix, offset = _matrix(rgb.shape[0], full_range)
    return _applied(matrix.astype(np.float32), rgb.transpose(2, 0, 1).astype(np.float32), offset)


def _applied(
    matrix: NDArray[np.float32], planes: NDArray[np.float32], offset: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    values = (matrix @ planes.reshape(3, -1)).reshape(planes.shape)
    if offset is not None:
        values += offset[:, None, None]
    return np.rint(values, out=values).clip(0, 255).astype(np.uint8)


def _matrix(height: int, full_range: bool) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """[3, 3] from RGB 0..255 to Y, Cb, Cr, and what is added to these."""
    red, blue = _WEIGHTS[height >= HD_HEIGHT_PX]
    luma = np.array([red, 1 - red - blue, blue])
    of_blue = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    of_red = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    scales = np.ones(3) if full_range else np.array([219, 224, 224]) / 255
    offset = np.array([0 if full_range else 16, 128, 128], np.float32)
    return np.stack([luma, of_blue, of_red]) * scales[:, None], offset
