"""An image of the largest contrasts there are, which few photographs show: lettering, letterboxes, burnt-out skies."""

from __future__ import annotations

import torch
from torch import Tensor

_WHITE = 255.0
_BETWEEN_COLUMNS, _BETWEEN_ROWS = 6, 7


def contrast_chart(height: int, width: int, *, strokes: bool = False) -> Tensor:
    """Two black and two white quarters, corner to corner.

    Args:
        height: of the image, in pixels.
        width: likewise.
        strokes: whether the left half of each quarter is crossed by lines of the other colour, one pixel wide: features
            get larger there than at any edge.

    Returns:
        float32 [1, 3, height, width] in 0..255.
    """
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    bottom, right = rows >= height // 2, columns >= width // 2
    # Bottom left and top right.
    white = bottom ^ right
    if strokes:
        down, across = rows - bottom * (height // 2), columns - right * (width // 2)
        crossed = (across % _BETWEEN_COLUMNS == 2) | (down % _BETWEEN_ROWS == 3)
        white = white ^ (crossed & (across < width // 4))
    return (white * _WHITE).expand(1, 3, -1, -1).clone()
