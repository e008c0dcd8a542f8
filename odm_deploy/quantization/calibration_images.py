"""The images to calibrate on, as network inputs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.imaging.reading import read_rgb, size_of
from odm_deploy.imaging.resize import downscale

MOST_HELD_BACK = 8
CROP_PX = 256
"""Largest height and width of an input, where nothing else is said."""
SMALL_PX = 48
"""Inputs of fewer pixels a side are mostly border to networks that look 20 pixels and more around each."""
REFINED_CROP_PX = 64
"""The same for power-of-two grids: there are few, and they are refined by what they do to the output."""


@dataclass(frozen=True)
class CalibrationImages:
    """Network inputs made of image files; each is read when its turn comes, so memory holds one."""

    paths: Sequence[Path]
    """The files, in the order they are read."""
    downscale: int = 4
    """Bicubic downscaling factor, so that high-resolution images become what the network is fed; 1: they are that."""
    crop_px: int = CROP_PX
    """Largest height and width of an input, in pixels; the middle of larger ones is taken. Bounds memory and time."""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        """float32 [1, 3, h, w] in 0..255 each, h and w at most `crop_px`.

        Raises:
            InputError: a file that is not an image, or one smaller than a single downscaled pixel.
        """
        return (low for low, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[Tensor, Rgb | None]]:
        """Each network input with the image it was made of, uint8 [downscale*h, downscale*w, 3]; None where it is one.

        Raises:
            InputError: as iterating.
        """
        for path in self.paths:
            image, high = _centre(read_rgb(path), self.crop_px * self.downscale), None
            if self.downscale > 1:
                try:
                    image, high = downscale(image, self.downscale)
                except InputError as error:
                    raise InputError(f"cannot calibrate on {path}", why=str(error)) from None
            yield torch.from_numpy(to_batch(image)), high

    def smallest(self) -> CalibrationImages:
        """The image alone whose input has the shortest side, by the files' headers; none where none can be read."""
        sizes = {path: min(size) for path in self.paths if (size := size_of(path))}
        return replace(self, paths=[min(sizes, key=lambda path: sizes[path])] if sizes else [])

    def largest_side(self) -> int:
        """The shorter side, in pixels, of the largest input, by the files' headers; 0 where none can be read."""
        sizes = [size for path in self.paths if (size := size_of(path))]
        return min(max((min(size) // self.downscale for size in sizes), default=0), self.crop_px)


def hold_back(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files to calibrate on, and every fifth, at most `MOST_HELD_BACK`, to judge the result by.

    Of fewer than five none can be spared: then both are all of them.
    """
    count = min(len(paths) // 5, MOST_HELD_BACK)
    if not count:
        return list(paths), list(paths)
    held_back = [paths[(2 * index + 1) * len(paths) // (2 * count)] for index in range(count)]
    return [path for path in paths if path not in held_back], held_back


def _centre(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The middle of an image, at most `size` pixels high and wide."""
    height, width = image.shape[:2]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return image[top : top + size, left : left + size]
