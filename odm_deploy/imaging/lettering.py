"""An image of small lettering: photographs hardly show strokes one pixel wide, so they are looked at apart."""

from __future__ import annotations

import numpy as np

from odm_deploy.imaging.pairs import Rgb

_ROWS, _COLUMNS = 8, 6
"""Height and width of a digit with the space beside it, in pixels."""
_STROKES = (
    (slice(0, 1), slice(0, 4)),
    (slice(0, 4), slice(3, 4)),
    (slice(3, 7), slice(3, 4)),
    (slice(6, 7), slice(0, 4)),
    (slice(3, 7), slice(0, 1)),
    (slice(0, 4), slice(0, 1)),
    (slice(3, 4), slice(0, 4)),
)
"""Rows and columns of the seven that digits are made of, clockwise from the top; the last is in the middle."""
_DIGITS = ((0, 1, 2, 3, 4, 5), (1, 2), (0, 1, 3, 4, 6), (0, 1, 2, 3, 6), (1, 2, 5, 6), (0, 2, 3, 5, 6), (2, 3, 4, 5, 6))


def lettering(height: int, width: int) -> Rgb:
    """Lines of digits, 4 x 7 pixels each: black on white in the upper half, white on black in the lower.

    Returns:
        uint8 [height, width, 3].
    """
    ink = np.zeros((height, width), bool)
    for line, row in enumerate(range(0, height, _ROWS)):
        for place, column in enumerate(range(0, width, _COLUMNS)):
            digit = ink[row : row + _ROWS - 1, column : column + _COLUMNS - 2]
            for stroke in _DIGITS[(place + line) % len(_DIGITS)]:
                digit[_STROKES[stroke]] = True
    paper = np.arange(height)[:, None] < height // 2
    return np.repeat(((ink ^ paper) * np.uint8(255))[..., None], 3, axis=2)
