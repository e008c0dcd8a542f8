"""Image files in and out: every format as uint8 RGB, every broken file as one clear error.

Pixels stay in the colour space they were stored in: an RGB colour profile travels along and is written back, because
converting to sRGB and 8 bits would throw away colours that the network never needed to know about.
"""

from __future__ import annotations

import glob
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.png import write_png

READ_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What `list_images` takes for an image in a folder."""

MAX_PIXELS = 2**26
"""Largest image read unless the caller allows more: 67 megapixels, 192 MiB as uint8 RGB, 3 GiB once upscaled x4."""

READERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only raster formats: Pillow would also hand PostScript and the like to other programs."""

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

# Filtering warnings changes process-wide state: two threads doing it at once would leave it changed for good.
_pillow_lock = threading.Lock()

# Lossless wherever the format can be; full-resolution chroma where it cannot, since upscaled detail is the point.
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image, upright (its EXIF orientation is applied)."""

    rgb: NDArray[np.uint8]
    """uint8 [H, W, 3] in 0..255; the three channels of a grayscale file are equal."""

    alpha: NDArray[np.uint8] | None = None
    """uint8 [H, W]; None where the file has no alpha channel or is opaque everywhere."""

    gray: bool = False
    """The file holds a single luminance channel."""

    icc_profile: bytes | None = None
    """The file's RGB colour profile, to be written back beside the upscaled pixels."""

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return self.rgb.shape[1]


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode one still image.

    Palettes, CMYK and other colour models become RGB; 16-bit samples become 8-bit.

    Args:
        path: the file; its content decides the format, not its suffix.
        max_pixels: refuse larger images before decoding them.

    Raises:
        InputError: no such file, not an image, truncated, larger than `max_pixels`, or an animation.
    """
    path = Path(path)
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "no such file"
        raise InputError(f"cannot read image {path}", why=why, fix="give the path of an image file")
    with _pillow_lock, warnings.catch_warnings():
        # Pillow warns about metadata that does not touch the pixels, and about sizes, which max_pixels answers.
        warnings.simplefilter("ignore")
        try:
            with PillowImage.open(path, formats=READERS) as opened:
                _check_still_and_small(path, opened, max_pixels)
                return _decoded(path, opened)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            # Decoders raise whatever their parsers stumble over: OSError, SyntaxError, struct.error, IndexError, ...
            raise InputError(
                f"cannot read image {path}", why=_reason(path, error), fix="replace it with a readable image"
            ) from error


def read_rgb(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of `read_image` alone: uint8 [H, W, 3]; any alpha channel is ignored.

    Raises:
        InputError: as `read_image`.
    """
    return read_image(path, max_pixels=max_pixels).rgb


def list_images(source: Path | str) -> list[Path]:
    """The image files that `source` names, sorted by path.

    Args:
        source: a folder (its images, not those of folders inside it), a file, or a glob pattern such as
            `frames/*.png` (`**` descends into folders).

    Raises:
        InputError: nothing there, or nothing that has an image's suffix.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        entries = sorted(path.iterdir())
    else:
        entries = sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207 - may be absolute
        if not entries:
            raise InputError(f"no images at {source}", why="no such file or folder", fix="check the path")
    images = [entry for entry in entries if entry.suffix.lower() in READ_SUFFIXES and entry.is_file()]
    images = [image for image in images if not image.name.startswith(".")]
    if not images:
        raise InputError(
            f"no images in {source}",
            why=f"none of its {len(entries)} entries ends in {', '.join(READ_SUFFIXES)}",
            fix="give a folder, file or pattern that holds images",
        )
    return images


def check_writable(path: Path | str) -> None:
    """Check that `write_image` knows the format `path` asks for, before the work that makes the pixels.

    Raises:
        UsageError: the suffix is none of .png, .jpg, .jpeg, .webp.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in _WRITERS:
        raise UsageError(
            f"cannot write image {path}",
            why=f"unknown suffix {suffix!r}" if suffix else "its name has no suffix",
            fix=f"end it in {', '.join(_WRITERS)}",
        )


def write_image(path: Path | str, image: Image | NDArray[np.uint8]) -> None:
    """Write an image in the format its suffix asks for: whole or not at all.

    PNG and WebP are lossless; JPEG is quality 95 with full-resolution chroma.

    Args:
        path: destination, ending in .png, .jpg, .jpeg or .webp; folders are made.
        image: an `Image` (alpha and colour profile are kept), or uint8 [H, W, 3] RGB, or uint8 [H, W] grayscale.

    Raises:
        UsageError: unknown suffix, or alpha asked of JPEG.
        InputError: the pixels are no such array, the format cannot hold an image this large, or the disk refuses.
    """
    path = Path(path)
    check_writable(path)
    format_name, options = _WRITERS[path.suffix.lower()]
    if not isinstance(image, Image):
        image = _as_image(path, image)
    # A gray source need not stay gray through a network: write one channel only where nothing is lost.
    one_channel = image.gray and bool((image.rgb == image.rgb[..., :1]).all())
    pixels: NDArray[np.uint8] = image.rgb[..., 0] if one_channel else image.rgb
    if image.alpha is not None:
        if format_name == "JPEG":
            raise UsageError(f"cannot write image {path}", why="JPEG has no alpha channel", fix="use .png or .webp")
        pixels = np.dstack([image.rgb, image.alpha])
    profile = image.icc_profile if pixels.ndim == 3 else None
    if format_name == "PNG":
        write_png(path, [np.atleast_3d(pixels)], image.height, icc_profile=profile)
        return
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


def _check_still_and_small(path: Path, opened: PillowImage.Image, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise InputError(
            f"cannot read image {path}",
            why=f"{width}x{height} is {width * height} pixels, more than the limit of {max_pixels}",
            fix="cut it into smaller images",
        )
    # Phones store a depth map or a second view behind an ordinary photograph (MPO): its first frame is the picture.
    frames = int(getattr(opened, "n_frames", 1))
    if frames > 1 and opened.format != "MPO":
        raise InputError(
            f"cannot read image {path}",
            why=f"it holds {frames} frames, and taking the first would lose the others",
            fix="split it into single images first",
        )


def _decoded(path: Path, opened: PillowImage.Image) -> Image:
    """Pixels, alpha and profile of an opened file; the decoding itself happens here."""
    gray = opened.mode in _GRAY_MODES
    profile = opened.info.get("icc_profile")
    # Bytes 16..20 of an ICC profile name its colour space; a CMYK or gray profile would garble RGB pixels.
    keeps_profile = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    has_alpha = opened.mode in _ALPHA_MODES or "transparency" in opened.info
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):
        upright = _from_16_bit(path, upright)
    if upright.mode == "F":
        raise InputError(
            f"cannot read image {path}", why="its samples are floating-point numbers", fix="convert it to 8-bit RGB"
        )
    # np.array, not asarray: Pillow's buffers are read-only, which array libraries that share memory warn about.
    if has_alpha:
        rgba = np.array(upright.convert("RGBA"))
        alpha = np.ascontiguousarray(rgba[..., 3])
        rgb = np.ascontiguousarray(rgba[..., :3])
    else:
        rgb, alpha = np.array(upright.convert("RGB")), None
    if alpha is not None and bool((alpha == 255).all()):
        alpha = None
    return Image(rgb=rgb, alpha=alpha, gray=gray, icc_profile=profile if keeps_profile else None)


def _from_16_bit(path: Path, image: PillowImage.Image) -> PillowImage.Image:
    """Grayscale of 0..65535 to 0..255, rounded; Pillow's own conversion would clip at 255 instead."""
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise InputError(
            f"cannot read image {path}",
            why=f"its samples lie in {samples.min()}..{samples.max()}, not in 0..65535",
            fix="convert it to 8-bit RGB",
        )
    return PillowImage.fromarray(((samples + 128) // 257).astype(np.uint8))


def _as_image(path: Path, array: NDArray[np.uint8]) -> Image:
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(
            f"cannot write image {path}",
            why=f"got {array.dtype} {list(array.shape)}",
            fix="hand over uint8 [H, W, 3] or uint8 [H, W]",
        )
    if array.ndim == 2:
        return Image(rgb=np.repeat(array[..., None], 3, axis=2), gray=True)
    return Image(rgb=array)


def _reason(path: Path, error: Exception) -> str:
    """Why decoding failed, on one line."""
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(READERS)}"
    return " ".join(str(error).split()) or type(error).__name__
