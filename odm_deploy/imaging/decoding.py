"""Pixels out of an opened file, whatever its colour model: upright RGB of 8 or 16 bits a sample, and alpha."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps

from odm_deploy.errors import InputError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import Bits, Pixels, to_eight_bits

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

# Of PNG files of 16 bits a sample, Pillow keeps all bits of gray ones only. Its decoder learns the order of a sample's
# bytes by a "raw mode", and of colours keeps the upper byte. Read once as what the file is, the upper bytes are left;
# read once more as if its bytes were swapped, the lower ones are.
_LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Raw mode of a file -> the one by which the lower bytes of its samples are kept instead of the upper ones."""
_GRAY_ALPHA, _FOUR_BYTES = "LA;16B", "RGBA"
"""Gray with alpha takes four bytes a pixel, which an 8-bit raw mode keeps in one pass."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file, on disk or in memory. In error messages it stands for itself: `f"cannot read {encoded}"`."""

    source: Path | bytes

    def open(self, formats: tuple[str, ...]) -> ImageFile.ImageFile:
        """Open it with Pillow, which reads nothing but its header yet. Raises whatever Pillow raises."""
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        return PillowImage.open(file, formats=formats)

    def is_empty(self) -> bool:
        """Whether there is not even one byte."""
        return not (self.source if isinstance(self.source, bytes) else self.source.stat().st_size)

    def __str__(self) -> str:
        return "the image" if isinstance(self.source, bytes) else f"image {self.source}"


def decode(encoded: EncodedImage, opened: PillowImage.Image, max_bits: Bits) -> Image:
    """Decode an opened file: `imaging.reading.read_image` without its checks, and with Pillow's own errors.

    Raises:
        InputError: its samples are no integers of up to 16 bits.
        Whatever Pillow raises on broken files.
    """
    profile = opened.info.get("icc_profile")
    # Bytes 16..20 of an ICC profile name its colour space; a CMYK or gray profile would garble RGB pixels.
    keeps_profile = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    gray = opened.mode in _GRAY_MODES
    samples: Pixels | None = None
    if opened.format == "PNG":
        # Decoding passes over the checksums of the pixels, and with them over most damage.
        with encoded.open(("PNG",)) as unread:
            unread.verify()
        samples = _deep_samples(encoded, opened)
    if samples is None:
        samples = _samples(encoded, ImageOps.exif_transpose(opened))
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


def _samples(encoded: EncodedImage, upright: PillowImage.Image) -> Pixels:
    """[H, W, C]: uint8 RGB or RGB with alpha, or uint16 gray."""
    if upright.mode.startswith("I"):
        gray = np.asarray(upright).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise InputError(
                f"cannot read {encoded}",
                why=f"its samples lie in {gray.min()}..{gray.max()}, not in 0..65535",
                fix="convert it to 8-bit RGB",
            )
        return gray.astype(np.uint16)[..., None]
    if upright.mode == "F":
        raise InputError(
            f"cannot read {encoded}", why="its samples are floating-point numbers", fix="convert it to 8-bit RGB"
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


def _deep_samples(encoded: EncodedImage, opened: PillowImage.Image) -> NDArray[np.uint16] | None:
    """Of a PNG of 16 bits a sample, upright uint16 [H, W, C], C = 2 with alpha, 3 or 4; None where Pillow keeps all."""
    tiles: list[Any] = getattr(opened, "tile", [])
    raw_mode = str(tiles[0].args) if tiles else ""
    if raw_mode == _GRAY_ALPHA:
        pairs = _decoded(encoded, _FOUR_BYTES)
        return _joined(pairs[..., 0::2], pairs[..., 1::2])
    if raw_mode in _LOWER_BYTES:
        return _joined(_decoded(encoded, raw_mode), _decoded(encoded, _LOWER_BYTES[raw_mode]))
    return None


def _decoded(encoded: EncodedImage, raw_mode: str) -> NDArray[np.uint8]:
    with encoded.open(("PNG",)) as opened:
        opened.tile = [tile._replace(args=raw_mode) for tile in opened.tile]
        return np.asarray(ImageOps.exif_transpose(opened))


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    samples = upper.astype(np.uint16)
    samples <<= 8
    samples |= lower
    return samples
