"""Decoded training images and their low-resolution partners, kept on disk and shared by processes.

DIV2K takes 0.9 s an image to decode and shrink, and 7 GB of memory in every process that holds it. With `ODM_CACHE` set
to a folder both happen once: pixels are kept there as .npy files, which later starts map into memory, so that all runs
on a machine share one copy of what they read. What is computed is the same.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from odm_deploy.errors import InputError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.imaging.resize import downscale

CACHE = "ODM_CACHE"
"""Environment variable that names the folder."""


def low_and_high(path: Path, scale: int) -> tuple[Rgb, Rgb]:
    """An image shrunk by `scale`, and itself cropped to fit: see `downscale`; read-only where they come from a cache.

    Of an image smaller than a low-resolution pixel nothing is left in the first.

    Raises:
        InputError: the image cannot be read, or the cache cannot be read or written.
    """
    folder = os.environ.get(CACHE)
    if not folder:
        return _made(path, scale)
    low, high = (_entry(Path(folder).expanduser(), path, f"{scale}-{part}") for part in ("low", "high"))
    if not (low.exists() and high.exists()):
        for entry, pixels in zip((low, high), _made(path, scale), strict=True):
            with atomic_path(entry) as temporary, temporary.open("wb") as stream:
                np.save(stream, np.ascontiguousarray(pixels))
    try:
        return np.load(low, mmap_mode="r"), np.load(high, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {low} or {high.name}", why=str(error), fix=f"empty {folder}") from None


def _made(path: Path, scale: int) -> tuple[Rgb, Rgb]:
    image = read_rgb(path)
    return downscale(image, scale) if min(image.shape[:2]) >= scale else (image[:0, :0], image)


def _entry(folder: Path, path: Path, part: str) -> Path:
    """The file for a part of an image; another one when the image changes."""
    facts = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\0{part}".encode()).hexdigest()
    return folder / f"{path.stem[:40]}-{key[:20]}.npy"
