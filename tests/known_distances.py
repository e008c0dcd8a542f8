"""Images whose distance from each other is known."""

from __future__ import annotations

import numpy as np

from odm_deploy.proof.parity_report import Distance


def pixels(*values: int, shape: tuple[int, ...] = (2, 2, 3)) -> np.ndarray:
    """uint8 [H, W, 3], 100 everywhere but in its first values."""
    image = np.full(shape, 100, np.uint8)
    image.flat[: len(values)] = values
    return image


def distance(*values: int) -> Distance:
    """Of `pixels(*values)` from an image that is 100 everywhere."""
    found = Distance()
    found.add(pixels(*values), pixels())
    return found
