"""Benchmark sets: folders of high-resolution images and their low-resolution partners.

ROOT/HR/NAME.png
ROOT/LR_bicubic/X4/NAMEx4.png      optional: made from HR by MATLAB's bicubic where the folder X4 is absent
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.resize import downscale


@dataclass(frozen=True)
class BenchmarkPair:
    """One image of a set: where its two resolutions lie."""

    name: str
    """File name of the high-resolution image without its suffix."""

    hr_path: Path
    """The ground truth."""

    lr_path: Path | None
    """The network's input; None where it is made from the ground truth."""

    scale: int
    """High-resolution pixels to one low-resolution pixel, along each axis."""

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read the pair.

        Returns:
            (low, high): uint8 [h, w, 3] and uint8 [h * scale, w * scale, 3]; the ground truth is cropped at bottom and
            right to fit, as the benchmark protocol asks. Grayscale files have three equal channels.

        Raises:
            InputError: a file cannot be read, or the two sizes do not belong together.
        """
        high = read_rgb(self.hr_path)
        if self.lr_path is None:
            return downscale(high, self.scale)
        low = read_rgb(self.lr_path)
        fitting = (high.shape[0] // self.scale, high.shape[1] // self.scale)
        if low.shape[:2] != fitting:
            raise InputError(
                f"{self.lr_path} is not {self.hr_path.name} at 1/{self.scale} of its size",
                why=f"it has {low.shape[1]}x{low.shape[0]} pixels, not {fitting[1]}x{fitting[0]}",
                fix="check the scale, or remove the LR_bicubic folder to have the images made",
            )
        return low, high[: low.shape[0] * self.scale, : low.shape[1] * self.scale]


@dataclass(frozen=True)
class BenchmarkSet:
    """The pairs of a set at one scale, sorted by name."""

    name: str
    """Name of the set's folder, such as Set5."""

    scale: int
    """High-resolution pixels to one low-resolution pixel, along each axis."""

    pairs: tuple[BenchmarkPair, ...]
    """At least one."""

    @classmethod
    def from_folder(cls, root: Path | str, scale: int) -> BenchmarkSet:
        """Find the pairs under `root`; no image is read yet.

        Raises:
            UsageError: `scale` is less than 1.
            InputError: `root` has no HR images, or its LR_bicubic/X{scale} lacks a partner for one of them.
        """
        root = Path(root)
        if scale < 1:
            raise UsageError("cannot open a benchmark set", why=f"scale {scale}", fix="give a scale of at least 1")
        if not (root / "HR").is_dir():
            raise InputError(
                f"{root} is no benchmark set",
                why="it has no folder HR" if root.is_dir() else "no such folder",
                fix=f"lay it out as HR/NAME.png and, optionally, LR_bicubic/X{scale}/NAMEx{scale}.png",
            )
        high = {path.stem: path for path in list_images(root / "HR")}
        folder = root / "LR_bicubic" / f"X{scale}"
        low = {path.stem: path for path in list_images(folder)} if folder.is_dir() else None
        if low is not None:
            lonely = [name for name in high if f"{name}x{scale}" not in low]
            if lonely:
                raise InputError(
                    f"{folder} is incomplete",
                    why=f"{len(lonely)} of {len(high)} images have no partner there, first {lonely[0]}x{scale}.png",
                    fix="add them, or remove the folder to have all images made",
                )
        pairs = tuple(
            BenchmarkPair(name, path, None if low is None else low[f"{name}x{scale}"], scale)
            for name, path in sorted(high.items())
        )
        return cls(name=root.resolve().name, scale=scale, pairs=pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[BenchmarkPair]:
        return iter(self.pairs)
