"""Training images and the batches cut from them.

The patches of an iteration depend on the seed and the iteration only, never on what was drawn before: a resumed run
sees the same batches as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import ImagePair, Rgb
from odm_deploy.imaging.reading import list_images
from training.image_cache import low_and_high

TRAINING_STREAM, CALIBRATION_STREAM = 0, 1


@dataclass(frozen=True)
class ImagePool:
    """All training pairs, in memory; `patch` is the side of a low-resolution patch in pixels, `seed` of all draws."""

    pairs: tuple[ImagePair, ...]
    scale: int
    patch: int
    seed: int

    def batch(self, iteration: int, size: int, stream: int = TRAINING_STREAM) -> tuple[Tensor, Tensor]:
        """The patches of one iteration: flipped and transposed with probability 1/2 each.

        Returns:
            uint8 [size, 3, patch, patch] and [size, 3, scale*patch, scale*patch]; see `to_network`.
        """
        random = np.random.default_rng([self.seed, stream, iteration])
        low, high = (
            np.empty((size, 3, self.patch * factor, self.patch * factor), np.uint8) for factor in (1, self.scale)
        )
        for index in range(size):
            small, large = self._patch(random)
            low[index], high[index] = small.transpose(2, 0, 1), large.transpose(2, 0, 1)
        return torch.from_numpy(low), torch.from_numpy(high)

    def _patch(self, random: np.random.Generator) -> tuple[Rgb, Rgb]:
        pair = self.pairs[random.integers(len(self.pairs))]
        rows, columns, _ = pair.low.shape
        top, left = random.integers(rows - self.patch + 1), random.integers(columns - self.patch + 1)
        flip_vertical, flip_horizontal, transpose = random.random(3) < 0.5

        def cut(image: Rgb, factor: int) -> Rgb:
            side = self.patch * factor
            piece = image[top * factor : top * factor + side, left * factor : left * factor + side]
            piece = piece[::-1] if flip_vertical else piece
            piece = piece[:, ::-1] if flip_horizontal else piece
            return piece.transpose(1, 0, 2) if transpose else piece

        return cut(pair.low, 1), cut(pair.high, self.scale)


def to_network(batch: Tensor, device: torch.device | str) -> Tensor:
    """A uint8 batch as networks take it: float32 in 0..255 on `device`.

    It travels as bytes, a quarter of the floats, and from pinned memory nobody waits for it.
    """
    return batch.to(device, non_blocking=True).float()


def split_validation(paths: Sequence[Path], held_back: int) -> tuple[list[Path], list[Path]]:
    """Training and validation paths: `held_back` of them, evenly spread, never seen by training.

    Raises:
        InputError: that would leave nothing to train on.
    """
    if held_back >= len(paths):
        raise InputError(
            f"cannot hold back {held_back} images", why=f"there are {len(paths)}", fix="lower data.validation_images"
        )
    chosen = {len(paths) * index // held_back for index in range(held_back)} if held_back else set[int]()
    return (
        [path for index, path in enumerate(paths) if index not in chosen],
        [path for index, path in enumerate(paths) if index in chosen],
    )


def find_images(folders: Iterable[Path]) -> list[Path]:
    """Images of all folders, in the order of the folders, sorted within each.

    Raises:
        InputError: a folder that does not exist or holds no images, or no folders at all.
    """
    paths = [path for folder in folders for path in list_images(folder)]
    if not paths:
        raise InputError("nothing to train on", why="data.folders is empty")
    return paths


def load_pairs(
    paths: Iterable[Path], scale: int, patch: int, *, skip_small: bool = False
) -> tuple[tuple[ImagePair, ...], int]:
    """Read images, crop them to multiples of `scale` and shrink them; once, where there is a cache (`image_cache`).

    Returns:
        The pairs, and how many images were skipped.

    Raises:
        InputError: an image that cannot be read; one smaller than a patch, or no other ones when those are skipped.
    """
    pairs: list[ImagePair] = []
    skipped: list[Path] = []
    for path in paths:
        low, high = low_and_high(path, scale)
        if min(low.shape[:2]) < patch:
            if not skip_small:
                raise InputError(
                    f"{path} is too small",
                    why=f"{high.shape[1]}x{high.shape[0]} against a target patch of {patch * scale}x{patch * scale}",
                    fix='set data.small_images = "skip", or lower data.patch',
                )
            skipped.append(path)
            continue
        pairs.append(ImagePair(path.name, low, high))
    if not pairs:
        raise InputError(
            "nothing to train on",
            why=f"all {len(skipped)} images are smaller than the target patch of {patch * scale}x{patch * scale}",
            fix="lower data.patch",
        )
    return tuple(pairs), len(skipped)
