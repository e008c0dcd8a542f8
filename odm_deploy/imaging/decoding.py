"""Pixels out of an opened file, whatever its colour model: upright RGB of 8 or 16 bits a sample, and alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from odm_deploy.errors import InputError
from odm_deploy.imaging.deep_png import deep_samples, is_deep
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import Bits, Pixels, to_eight_bits

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def decode(path: Path, opened: PillowImage.Image, max_bits: Bits) -> Image:
    """Decode an opened file: `imaging.io.read_image` without its checks, and with Pillow's own errors.

    Args:
        path: of the file.
        opened: the file, opened, nothing of it decoded yet.
        max_bits: see `read_image`.

    Raises:
        InputError: its samples are no integers of up to 16 bits.
        Whatever Pillow raises on broken files.
    """
    profile = opened.info.get("icc_profile")
    # Bytes 16..20 of an ICC profile name its colour space; a CMYK or gray profile would garble RGB pixels.
    keeps_profile = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    gray = opened.mode in _GRAY_MODES
    if opened.format == "PNG":
        # Decoding passes over the checksums of the pixels, and with them over most damage.
        with PillowImage.open(path, formats=("PNG",)) as unread:
            unread.verify()
    if is_deep(opened):
        samples: Pixels = deep_samples(path, opened)
    else:
        samples = _samples(path, ImageOps.exif_transpose(opened))
    if samples.dtype == np.uint16:
        gray = samples.shape[2] < 3
        samples = _with_transparent_colour(samples, opened.info.get("transparency"))
        samples = samples if max_bits == 16 else to_eight_bits(samples)
    has_alpha = samples.shape[2] in (2, 4)
    colours, alpha = (samples[..., :-1], samples[..., -1]) if has_alpha else (samples, None)
    if alpha is not None:
        alpha = None if bool((alpha == np.iinfo(alpha.dtype).max).all()) else np.ascontiguousarray(alpha)
    rgb = np.ascontiguousarray(np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours)
    return Image(rgb=rgb, alpha=alpha, gray=gray, icc_profile=profile if keeps_profile else None)


def _samples(path: Path, upright: PillowImage.Image) -> Pixels:
    """[H, W, C]: uint8 RGB or RGB with alpha, or uint16 gray."""
    if upright.mode.startswith("I"):
        gray = np.asarray(upright).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise InputError(
                f"cannot read image {path}",
                why=f"its samples lie in {gray.min()}..{gray.max()}, not in 0..65535",
                fix="convert it to 8-bit RGB",
            )
        return gray.astype(np.uint16)[..., None]
    if upright.mode == "F":
        raise InputError(
            f"cannot read image {path}", why="its samples are floating-point numbers", fix="convert it to 8-bit RGB"
        )
    has_alpha = upright.mode in _ALPHA_MODES or "transparency" in upright.info
    # np.array, not asarray: Pillow's buffers are read-only, which array libraries that share memory warn about.
    return np.array(upright.convert("RGBA" if has_alpha else "RGB"))


def _with_transparent_colour(samples: Pixels, colour: Any) -> Pixels:
    """Add an alpha channel where a file names one colour as transparent instead: PNG's tRNS, 16 bits a sample."""
    if colour is None or samples.shape[2] in (2, 4):
        return samples
    opaque = (samples != np.array(colour, np.uint16)).any(axis=2, keepdims=True)
    return np.concatenate([samples, np.where(opaque, 65535, 0).astype(np.uint16)], axis=2)
