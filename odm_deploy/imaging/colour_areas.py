"""An image of areas of one colour: photographs hardly show saturated ones, so they are looked at apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odm_deploy.imaging.pairs import Rgb

CORNER_COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "red": (255, 0, 0),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
}
"""The corners of the RGB cube: nothing lies further from what photographs show."""
_ROWS, _COLUMNS = 2, 4


def colour_areas(height: int, width: int) -> Rgb:
    """Two rows of four areas, one of each of `CORNER_COLOURS`, in their order.

    Returns:
        uint8 [height, width, 3].
    """
    row = np.arange(height) * _ROWS // height
    column = np.arange(width) * _COLUMNS // width
    return np.array(list(CORNER_COLOURS.values()), np.uint8)[row[:, None] * _COLUMNS + column]


def area_colours(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """The mean colour of each area's middle: borders are another matter.

    Args:
        image: of `colour_areas` at any scale, [H, W, 3].

    Returns:
        [8, 3], in the order of `CORNER_COLOURS`.
    """
    areas = (area for row in np.array_split(image, _ROWS) for area in np.array_split(row, _COLUMNS, axis=1))
    return np.stack([_middle(area).mean((0, 1)) for area in areas])


def _middle(area: NDArray[np.floating]) -> NDArray[np.floating]:
    rows, columns = (slice(length // 4, length - length // 4) for length in area.shape[:2])
    return area[rows, columns]
