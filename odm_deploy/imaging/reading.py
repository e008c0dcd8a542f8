"""Image files in: every format as RGB of 8 or 16 bits a sample, every broken file as one clear error.

Pixels stay in the colour space they were stored in: a colour profile travels along and is written back, because
converting to sRGB would throw away colours that the network never needed to know about.
"""

from __future__ import annotations

import glob
import logging
import re
import threading
import warnings
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from odm_deploy.errors import InputError
from odm_deploy.imaging.decoding import EncodedImage, decode
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.jpeg import check_scans
from odm_deploy.imaging.pixels import Bits, to_eight_bits
from odm_deploy.kinds_of_files import kind_by_name, why_no_file

READ_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What `list_images` takes for an image in a folder."""

OTHER_SUFFIXES = (
    *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jp2"),
    *(".jpx", ".jxl", ".jxr", ".nef", ".orf", ".pbm", ".pnm", ".psd", ".raf", ".rw2", ".svg", ".tga"),
)
"""Images all the same, in formats that are not read."""

MAX_PIXELS = 2**26
"""Largest image read unless the caller allows more: 67 megapixels, 192 MiB as uint8 RGB, 3 GiB once upscaled x4."""

READERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only raster formats: Pillow would also hand PostScript and the like to other programs."""

# Pillow logs what it finds odd in a file; without anybody who takes that, it would appear on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Filtering warnings changes process-wide state: two threads doing it at once would leave it changed for good.
_pillow_lock = threading.Lock()


class TooLargeError(InputError):
    """An image of more pixels than its reader allows."""


def read_image(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, max_bits: Bits = 8) -> Image:
    """Decode one still image.

    Palettes, CMYK and other colour models become RGB.

    Args:
        source: path of a file, or what such a file holds; its content decides the format, not its suffix.
        max_pixels: refuse larger images before decoding them.
        max_bits: 16 keeps the samples of 16-bit PNG files, and of gray ones of other formats, as they are; with 8 they
            are rounded.

    Raises:
        TooLargeError: larger than `max_pixels`.
        InputError: no such file, not an image, truncated, or an animation.
    """
    encoded = EncodedImage(source if isinstance(source, bytes) else Path(source))
    if isinstance(encoded.source, Path):
        _check_regular(encoded.source)
    with _pillow_lock, warnings.catch_warnings():
        # Pillow warns about metadata that does not touch the pixels, and about sizes, which max_pixels answers.
        warnings.simplefilter("ignore")
        try:
            with encoded.open(READERS) as opened:
                _check_still_and_small(encoded, opened, max_pixels)
                return decode(encoded, opened, max_bits)
        except (InputError, MemoryError):
            raise
        except PillowImage.DecompressionBombError as error:
            # Pillow's own limit is higher, but it looks first.
            pixels = "".join(re.findall(r"\((\d+) pixels", str(error))) or "too many"
            raise _too_large(encoded, f"{pixels} pixels", max_pixels) from error
        except Exception as error:
            # Decoders raise whatever their parsers stumble over: OSError, SyntaxError, struct.error, IndexError, ...
            raise InputError(
                f"cannot read {encoded}",
                why=_reason(encoded, error),
                fix=_of_video(encoded.source) or "replace it with a readable image",
            ) from error


def read_rgb(path: Path | str) -> NDArray[np.uint8]:
    """The pixels of `read_image` alone: uint8 [H, W, 3]; any alpha channel is ignored.

    Raises:
        InputError: as `read_image`.
    """
    return to_eight_bits(read_image(path).rgb)


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height in a file's header; None where there is none that can be read, which `read_image` explains."""
    try:
        _check_regular(path)
        with _pillow_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with EncodedImage(path).open(READERS) as opened:
                return opened.size
    except Exception:
        return None


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
    entries = _entries(path)
    if not entries:
        why = "the folder is empty" if path.is_dir() else "no such file or folder"
        raise InputError(f"no images at {source}", why=why, fix="check the path")
    if entries == [path]:
        # What it is, if no image, is said by whoever reads it.
        return entries
    images = [entry for entry in entries if entry.suffix.lower() in READ_SUFFIXES and not entry.name.startswith(".")]
    if not images:
        raise InputError(
            f"no images in {source}",
            why=f"none of its {len(entries)} entries ends in {', '.join(READ_SUFFIXES)}",
            fix=_instead_of(entries),
        )
    return images


def choose_images(source: Path | str, count: int) -> list[Path]:
    """At most `count` image files of a folder, evenly spaced over its sorted names.

    Evenly spaced rather than the first ones: neighbours in a folder are often frames of one scene.

    Raises:
        InputError: no such folder, no image in it, or one that is no file, such as a broken link.
    """
    paths = list_images(source)
    if len(paths) > count:
        paths = [paths[index * len(paths) // count] for index in range(count)]
    for path in paths:
        _check_regular(path)
    return paths


def _instead_of(entries: list[Path]) -> str:
    """What to give instead of entries that are no images."""
    told = next(filter(None, map(_of_video, entries)), "")
    return told or "give a folder, file or pattern that holds images"


def _of_video(source: Path | bytes) -> str:
    """What to do with a video where images are wanted; empty where that is the name of something else."""
    if isinstance(source, bytes) or kind_by_name(source) != "a video":
        return ""
    return (
        f"upscale takes a video by its own name; images of it: ffmpeg -i {quote(str(source))} -vf fps=1 FOLDER/%04d.png"
    )


def list_other_images(source: Path | str) -> list[Path]:
    """The images among what `source` names that `list_images` leaves out, because their formats are not read."""
    return [entry for entry in _entries(Path(source)) if entry.suffix.lower() in OTHER_SUFFIXES]


def _entries(source: Path) -> list[Path]:
    """A file itself, what a folder holds, or what a pattern matches; sorted."""
    try:
        if source.is_file():
            return [source]
        if source.is_dir():
            return sorted(source.iterdir())
        return sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207 - may be absolute
    except OSError as error:
        why, fix = error.strerror or str(error), "give a folder you may read"
        raise InputError(f"cannot list the images of {source}", why=why, fix=fix) from error


def _check_regular(path: Path) -> None:
    """Refuse what is no file: opening a named pipe, for one, would wait for ever."""
    if why := why_no_file(path):
        raise InputError(f"cannot read image {path}", why=why, fix="give the path of an image file")


def _check_still_and_small(encoded: EncodedImage, opened: PillowImage.Image, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise _too_large(encoded, f"{width}x{height} is {width * height} pixels", max_pixels)
    # Phones store a depth map or a second view behind an ordinary photograph (MPO): its first frame is the picture.
    # All frames of an animation would have to be found to be counted.
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        raise InputError(
            f"cannot read {encoded}",
            why="it holds several frames, and taking the first would lose the others",
            fix="split it into single images first",
        )
    if opened.format in ("JPEG", "MPO"):
        check_scans(encoded.source, str(encoded))


def _too_large(encoded: EncodedImage, size: str, limit: int) -> TooLargeError:
    why = f"{size}, more than the limit of {limit}"
    return TooLargeError(f"cannot read {encoded}", why=why, fix="cut it into smaller images")


def _reason(encoded: EncodedImage, error: Exception) -> str:
    """Why decoding failed, on one line."""
    if encoded.is_empty():
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(READERS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "decoder object" in str(error):
        return "its data are damaged or end too early"
    return " ".join(str(error).split()) or type(error).__name__
