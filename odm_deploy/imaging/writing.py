"""Image files out: whole or not at all, in the format that the name asks for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import PIXEL_TYPES, Bits, Pixels
from odm_deploy.imaging.png import write_png

# Lossless wherever the format can be; full-resolution chroma where it cannot, since upscaled detail is the point.
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}
WRITTEN_SUFFIXES = tuple(_WRITERS)
"""Of the image files that are written."""


def check_writable(path: Path | str, bits: Bits = 8) -> None:
    """Check that `write_image` knows the format `path` asks for, before the work that makes the pixels.

    Args:
        path: destination.
        bits: of the samples it is to hold.

    Raises:
        UsageError: the suffix is none of .png, .jpg, .jpeg, .webp, or its format has no samples of so many bits.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in _WRITERS:
        raise UsageError(
            f"cannot write image {path}",
            why=f"unknown suffix {suffix!r}" if suffix else "its name has no suffix",
            fix=f"end it in {', '.join(_WRITERS)}",
        )
    if bits > most_bits(path):
        why = f"{_WRITERS[suffix.lower()][0]} holds 8 bits a sample"
        raise UsageError(f"cannot write image {path} of {bits} bits a sample", why=why, fix="use .png")


def most_bits(path: Path | str) -> Bits:
    """Of a sample, in the format that the suffix of `path` asks for."""
    return 16 if Path(path).suffix.lower() == ".png" else 8


def write_image(path: Path | str, image: Image | Pixels) -> None:
    """Write an image in the format its suffix asks for: whole or not at all.

    PNG and WebP are lossless; JPEG is quality 95 with full-resolution chroma.

    Args:
        path: destination, ending in .png, .jpg, .jpeg or .webp; folders are made.
        image: an `Image` (alpha and colour profile are kept), or [H, W, 3] RGB or [H, W] grayscale; uint8 or, for PNG,
            uint16.

    Raises:
        UsageError: unknown suffix, alpha asked of JPEG, or 16 bits of anything but PNG.
        InputError: the pixels are no such array, the format cannot hold an image this large, or the disk refuses.
    """
    path = Path(path)
    if not isinstance(image, Image):
        image = _as_image(path, image)
    check_writable(path, image.bits)
    format_name, options = _WRITERS[path.suffix.lower()]
    pixels, profile = _stored(image)
    if format_name == "PNG":
        write_png(path, [np.atleast_3d(pixels)], image.height, icc_profile=profile)
        return
    if image.alpha is not None and format_name == "JPEG":
        raise UsageError(f"cannot write image {path}", why="JPEG has no alpha channel", fix="use .png or .webp")
    encoded = PillowImage.fromarray(np.ascontiguousarray(pixels))
    if profile is not None:
        options = {**options, "icc_profile": profile}
    try:
        with atomic_path(path) as temporary:
            encoded.save(temporary, format=format_name, **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot write image {path}",
            why=f"{image.width}x{image.height} pixels as {format_name}: {error}",
            fix="choose another place, or .png for very large images",
        ) from error


def encode_png(image: Image) -> bytes:
    """An image as the PNG file that `write_image` makes of it.

    Raises:
        InputError: PNG cannot hold an image this large.
    """
    pixels, profile = _stored(image)
    stream = io.BytesIO()
    write_png(stream, [np.atleast_3d(pixels)], image.height, icc_profile=profile)
    return stream.getvalue()


def _stored(image: Image) -> tuple[Pixels, bytes | None]:
    """The samples a file holds, [H, W] of gray or [H, W, 3 or 4], and the colour profile that belongs to them."""
    if image.alpha is not None:
        return np.dstack([image.rgb, image.alpha]), image.icc_profile
    # A gray source need not stay gray through a network: write one channel only where nothing is lost.
    if image.gray and bool((image.rgb == image.rgb[..., :1]).all()):
        return image.rgb[..., 0], None
    return image.rgb, image.icc_profile


def _as_image(path: Path, array: Pixels) -> Image:
    if (
        array.dtype not in PIXEL_TYPES
        or array.size == 0
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    ):
        raise InputError(
            f"cannot write image {path}",
            why=f"got {array.dtype} {list(array.shape)}",
            fix="hand over uint8 or uint16, [H, W, 3] or [H, W]",
        )
    if array.ndim == 2:
        return Image(rgb=np.repeat(array[..., None], 3, axis=2), gray=True)
    return Image(rgb=array)
