"""Image files in and out: every format as RGB of 8 or 16 bits a sample, every broken file as one clear error.

Pixels stay in the colour space they were stored in: a colour profile travels along and is written back, because
converting to sRGB would throw away colours that the network never needed to know about.
"""

from __future__ import annotations

import glob
import re
import stat
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.decoding import decode
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import PIXEL_TYPES, Bits, Pixels, to_eight_bits
from odm_deploy.imaging.png import write_png

READ_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What `list_images` takes for an image in a folder."""

MAX_PIXELS = 2**26
"""Largest image read unless the caller allows more: 67 megapixels, 192 MiB as uint8 RGB, 3 GiB once upscaled x4."""

READERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only raster formats: Pillow would also hand PostScript and the like to other programs."""

# Filtering warnings changes process-wide state: two threads doing it at once would leave it changed for good.
_pillow_lock = threading.Lock()

# Lossless wherever the format can be; full-resolution chroma where it cannot, since upscaled detail is the point.
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, max_bits: Bits = 8) -> Image:
    """Decode one still image.

    Palettes, CMYK and other colour models become RGB.

    Args:
        path: the file; its content decides the format, not its suffix.
        max_pixels: refuse larger images before decoding them.
        max_bits: 16 keeps the samples of 16-bit PNG files, and of gray ones of other formats, as they are; with 8 they
            are rounded.

    Raises:
        InputError: no such file, not an image, truncated, larger than `max_pixels`, or an animation.
    """
    path = Path(path)
    _check_regular(path)
    with _pillow_lock, warnings.catch_warnings():
        # Pillow warns about metadata that does not touch the pixels, and about sizes, which max_pixels answers.
        warnings.simplefilter("ignore")
        try:
            with PillowImage.open(path, formats=READERS) as opened:
                _check_still_and_small(path, opened, max_pixels)
                return decode(path, opened, max_bits)
        except (InputError, MemoryError):
            raise
        except PillowImage.DecompressionBombError as error:
            # Pillow's own limit is higher, but it looks first.
            pixels = "".join(re.findall(r"\((\d+) pixels", str(error))) or "too many"
            raise InputError(
                f"cannot read image {path}", why=_too_many(pixels, max_pixels), fix="cut it into smaller images"
            ) from error
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
    return to_eight_bits(read_image(path, max_pixels=max_pixels).rgb)


def list_images(source: Path | str) -> list[Path]:
    """The image files that `source` names, sorted by path.

    Whatever has an image's suffix counts, even what turns out to be a folder or a broken link: passed over in silence,
    nobody would miss it. `read_image` says what is wrong with it.

    Args:
        source: a folder (its images, not those of folders inside it), a file, or a glob pattern such as
            `frames/*.png` (`**` descends into folders).

    Raises:
        InputError: nothing there, nothing that has an image's suffix, or a folder that may not be read.
    """
    path = Path(source)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            entries = sorted(path.iterdir())
        else:
            entries = sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207 - may be absolute
    except OSError as error:
        why, fix = error.strerror or str(error), "give a folder you may read"
        raise InputError(f"cannot list the images of {source}", why=why, fix=fix) from error
    if not entries:
        why = "the folder is empty" if path.is_dir() else "no such file or folder"
        raise InputError(f"no images at {source}", why=why, fix="check the path")
    images = [entry for entry in entries if entry.suffix.lower() in READ_SUFFIXES and not entry.name.startswith(".")]
    if not images:
        raise InputError(
            f"no images in {source}",
            why=f"none of its {len(entries)} entries ends in {', '.join(READ_SUFFIXES)}",
            fix="give a folder, file or pattern that holds images",
        )
    return images


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
    # A gray source need not stay gray through a network: write one channel only where nothing is lost.
    one_channel = image.gray and bool((image.rgb == image.rgb[..., :1]).all())
    pixels: Pixels = image.rgb[..., 0] if one_channel else image.rgb
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


def _check_regular(path: Path) -> None:
    """Refuse what is no file: opening a named pipe, for one, would wait for ever."""
    why = ""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            why = "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file"
    except FileNotFoundError:
        why = "it is a link to nowhere" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:
        # ValueError: no file can have such a name.
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise InputError(f"cannot read image {path}", why=why, fix="give the path of an image file")


def _check_still_and_small(path: Path, opened: PillowImage.Image, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise InputError(
            f"cannot read image {path}",
            why=f"{width}x{height} is {_too_many(width * height, max_pixels)}",
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


def _too_many(pixels: object, limit: int) -> str:
    return f"{pixels} pixels, more than the limit of {limit}"


def _reason(path: Path, error: Exception) -> str:
    """Why decoding failed, on one line."""
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(READERS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "decoder object" in str(error):
        return "its data are damaged or end too early"
    return " ".join(str(error).split()) or type(error).__name__
