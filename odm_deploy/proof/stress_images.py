"""Images that look for trouble: where two programs round or saturate differently, these show it sooner than photos."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stress_images(count: int, side: int = 12, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [count, 3, side, side]: in turn noise, black and white, flat, ramps, single pixels, checkerboards.

    Black and white saturate quantizers and reach the largest sums; flat images and ramps repeat one value so often that
    a rounding tie, once met, fills the image.
    """
    rng = np.random.default_rng(seed)
    shape = (3, side, side)
    y, x = np.mgrid[:side, :side]
    kinds = [
        lambda: rng.integers(0, 256, shape),
        lambda: rng.integers(0, 2, shape) * 255,
        lambda: np.broadcast_to(rng.integers(0, 256, (3, 1, 1)), shape),
        lambda: np.broadcast_to((y * rng.integers(1, 30) + x * rng.integers(1, 30)) % 256, shape),
        lambda: 255 * (rng.random(shape) < 0.02),
        lambda: np.broadcast_to((y // rng.integers(1, 3) + x) % 2 * 255, shape) ^ rng.integers(0, 2, shape),
    ]
    return np.stack([kinds[index % len(kinds)]() for index in range(count)]).astype(np.uint8)
