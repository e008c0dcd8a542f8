"""Areas of one colour: photographs hardly show saturated ones, so they are looked at apart."""

from __future__ import annotations

import torch
from torch import Tensor

WHITE = 255.0
CORNER_COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "blue": (0.0, 0.0, WHITE),
    "green": (0.0, WHITE, 0.0),
    "cyan": (0.0, WHITE, WHITE),
    "red": (WHITE, 0.0, 0.0),
    "magenta": (WHITE, 0.0, WHITE),
    "yellow": (WHITE, WHITE, 0.0),
    "white": (WHITE, WHITE, WHITE),
}
"""The corners of the RGB cube: nothing lies further from what photographs show."""


def colour_area(name: str, height: int, width: int) -> Tensor:
    """An image of nothing but one of `CORNER_COLOURS`, float32 [1, 3, height, width] in 0..255."""
    return torch.tensor(CORNER_COLOURS[name]).reshape(1, 3, 1, 1).expand(-1, -1, height, width).clone()


def middle_colour(image: Tensor) -> Tensor:
    """The mean colour [3] of the middle of an image [1, 3, H, W], clamped to 0..255: its border is another matter."""
    rows, columns = (slice(length // 4, length - length // 4) for length in image.shape[2:])
    return image[0, :, rows, columns].clamp(0, WHITE).mean((1, 2))
