"""Images at two resolutions: where they lie, and reading them so that they fit.

A benchmark set is a folder laid out like this:

ROOT/HR/NAME.png
ROOT/LR_bicubic/X4/NAMEx4.png      optional: made from HR by MATLAB's bicubic where the folder X4 is absent
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.resize import downscale

Rgb = NDArray[np.uint8]
"""uint8 [H, W, 3]."""

_HIGH, _LOW = "HR", "LR_bicubic"


@dataclass(frozen=True)
class ImagePair:
    """An image at two resolutions."""

    name: str
    low: Rgb
    """uint8 [H, W, 3], the network's input."""
    high: Rgb
    """uint8 [scale*H, scale*W, 3], the ground truth."""


@dataclass(frozen=True)
class Sample:
    """An image to upscale, with its ground truth where there is one."""

    name: str
    low: Rgb
    """uint8 [H, W, 3], the network's input."""
    truth: Rgb | None = None
    """uint8 [scale*H, scale*W, 3], or None."""


@dataclass(frozen=True)
class PairFile:
    """Paths of an `ImagePair`; `load` reads the pixels, so that a list of many stays small."""

    name: str
    """File name of the high-resolution image without its suffix."""
    high: Path
    low: Path | None
    """None where it is made from the ground truth."""
    scale: int
    """High-resolution pixels to one low-resolution pixel, along each axis."""

    def load(self) -> ImagePair:
        """Read both; the ground truth is cropped at bottom and right to fit, as the benchmark protocol asks.

        Raises:
            InputError: a file cannot be read, or the two sizes do not belong together.
        """
        high = read_rgb(self.high)
        if self.low is None:
            return ImagePair(self.name, *downscale(high, self.scale))
        low = read_rgb(self.low)
        fitting = (high.shape[0] // self.scale, high.shape[1] // self.scale)
        if low.shape[:2] != fitting:
            raise InputError(
                f"{self.low} is not {self.high.name} at 1/{self.scale} of its size",
                why=f"it has {low.shape[1]}x{low.shape[0]} pixels, not {fitting[1]}x{fitting[0]}",
                fix=f"check the scale, or remove the {_LOW} folder to have the images made",
            )
        return ImagePair(self.name, low, high[: low.shape[0] * self.scale, : low.shape[1] * self.scale])


@dataclass(frozen=True)
class SampleFile:
    """Paths of a `Sample`; `load` reads the pixels."""

    name: str
    low: Path
    truth: Path | None
    scale: int
    """Output pixels per input pixel, along each axis."""

    def load(self) -> Sample:
        """Read the images; up to scale - 1 pixels of ground truth at bottom and right are cropped.

        Raises:
            InputError: an unreadable image, or ground truth of another size than the input's times the scale.
        """
        low = read_rgb(self.low)
        if self.truth is None:
            return Sample(self.name, low)
        truth = read_rgb(self.truth)
        height, width = low.shape[0] * self.scale, low.shape[1] * self.scale
        # The benchmark protocol crops what the scale does not divide; more is an image of another scale.
        if (truth.shape[0] // self.scale, truth.shape[1] // self.scale) != low.shape[:2]:
            raise InputError(
                f"{self.truth} is no ground truth for {self.low}",
                why=f"it is {truth.shape[1]}x{truth.shape[0]}, x{self.scale} needs {width}x{height}",
                fix="check the scale",
            )
        return Sample(self.name, low, truth[:height, :width])


def find_pairs(root: Path | str, scale: int) -> list[PairFile]:
    """The pairs of a benchmark set at one scale, sorted by name, at least one; no image is read yet.

    Raises:
        UsageError: `scale` is less than 1.
        InputError: `root` has no HR images, or its LR_bicubic/X{scale} lacks a partner for one of them.
    """
    root = Path(root)
    if scale < 1:
        raise UsageError("cannot open a benchmark set", why=f"scale {scale}", fix="give a scale of at least 1")
    if not (root / _HIGH).is_dir():
        raise InputError(
            f"{root} is no benchmark set",
            why=f"it has no folder {_HIGH}" if root.is_dir() else "no such folder",
            fix=f"lay it out as {_HIGH}/NAME.png and, optionally, {_LOW}/X{scale}/NAMEx{scale}.png",
        )
    high = {path.stem: path for path in list_images(root / _HIGH)}
    folder = root / _LOW / f"X{scale}"
    if not folder.is_dir():
        return [PairFile(name, path, None, scale) for name, path in sorted(high.items())]
    low = {path.stem: path for path in list_images(folder)}
    lonely = [name for name in high if f"{name}x{scale}" not in low]
    if lonely:
        raise InputError(
            f"{folder} is incomplete",
            why=f"{len(lonely)} of {len(high)} images have no partner there, first {lonely[0]}x{scale}.png",
            fix="add them, or remove the folder to have all images made",
        )
    return [PairFile(name, path, low[f"{name}x{scale}"], scale) for name, path in sorted(high.items())]


def find_samples(images: Path, truth: Path | None, scale: int, limit: int | None = None) -> list[SampleFile]:
    """The samples a folder, file or glob names.

    Args:
        images: the network's input images. Of those in a benchmark set's LR_bicubic/X4 (the folder, one of its files or
            a pattern in it) ground truth is found by itself.
        truth: folder of ground truth images, named like the inputs with or without their `x4` suffix.
        scale: output pixels per input pixel.
        limit: take only the first so many.

    Raises:
        InputError: no images, or an image without its ground truth although a folder was named.
    """
    folder = truth
    if folder is None:
        folder = _truth_beside(images)
    by_name = {} if folder is None else {path.stem: path for path in list_images(folder)}
    found: list[SampleFile] = []
    for path in list_images(images)[:limit]:
        name = path.stem.removesuffix(f"x{scale}")
        match = by_name.get(name) or by_name.get(path.stem)
        if truth is not None and match is None:
            raise InputError(f"no ground truth for {path}", why=f"{truth} holds neither {name} nor {path.stem}")
        found.append(SampleFile(name, path, match, scale))
    return found


def _truth_beside(images: Path) -> Path | None:
    """The folder of ground truth of the benchmark set that `images` lie in; None where they lie in none."""
    inside = images if images.is_dir() else images.parent
    high = inside.parent.parent / _HIGH
    return high if inside.parent.name == _LOW and high.is_dir() else None
