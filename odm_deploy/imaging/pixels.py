"""Samples of 8 and of 16 bits, and what they are to a network: 0..255 either way, with fractions where there are 16.

65535 is 257 * 255: both kinds have the same black and the same white, and every 8-bit sample has an equal 16-bit one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError

Bits = Literal[8, 16]
"""Of a sample: unsigned integers, 0 is black, 255 or 65535 is white."""
Pixels = NDArray[np.uint8 | np.uint16]
"""Samples of 8 or 16 bits."""

PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))

_STEPS = 257
"""16-bit steps to one 8-bit step."""


def bits_of(pixels: NDArray[Any]) -> Bits:
    """Of the samples of an array of uint8 or uint16."""
    return 8 if pixels.dtype == np.uint8 else 16


def to_batch(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """An image [H, W, 3] as networks take it: float32 [1, 3, H, W], contiguous, the same values."""
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32)


def round_to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats about 0..255, of any shape, rounded half to even and clamped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def to_pixels(batch: NDArray[Any]) -> NDArray[np.uint8]:
    """The image in a batch of one: [1, 3, H, W] in 0..255 -> uint8 [H, W, 3], rounded half to even and clamped.

    Raises:
        InputError: values that are not finite.
    """
    if not np.isfinite(batch).all():
        raise InputError("the output holds NaN or infinity", fix="check the model's weights and ranges")
    return round_to_uint8(batch[0]).transpose(1, 2, 0)


def to_network(pixels: Pixels) -> NDArray[np.uint8 | np.float32]:
    """uint8 as it is; uint16 becomes float32 in 0..255, each the nearest to sample / 257."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return np.divide(pixels, np.float32(_STEPS), dtype=np.float32)


def from_network(values: NDArray[Any], bits: Bits) -> Pixels:
    """What a network returned as pixels: clamped, and rounded half to even to steps of 1/255 or 1/65535 of white.

    Args:
        values: uint8, which stays as it is, or floats about 0..255; written to, if float32.
        bits: of the samples to return; uint8 values have 8.

    Raises:
        InputError: a value is NaN, which is no colour.
    """
    if values.dtype == np.uint8:
        return values
    # In place: a float image is up to four times what it is about to become.
    scaled = values.astype(np.float32, copy=False)
    if bits == 16:
        scaled *= _STEPS
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255 if bits == 8 else 65535, out=scaled)
    try:
        # The conversion itself notices what is no number; a look at each value would cost as much again.
        with np.errstate(invalid="raise"):
            return scaled.astype(np.uint8 if bits == 8 else np.uint16)
    except FloatingPointError as error:
        raise InputError(
            "the output holds NaN",
            why="the network computes no number for some pixel of this image",
            fix="check its weights; a model in half precision may overflow where one of --precision fp32 does not",
        ) from error


def to_eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """The nearest 8-bit samples; no copy where they have 8 bits already."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    # Half of 257 is no integer, so that there are no ties.
    return ((pixels.astype(np.uint32) + _STEPS // 2) // _STEPS).astype(np.uint8)
