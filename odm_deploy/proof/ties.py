"""Rounding ties: how far a value is from the code that a runtime gave it.

A quantizer rounds x / s to the nearest code. Runtimes compute that quotient in their own way: OpenVINO multiplies by
1 / s, rounded to float32, and folds the scales of the convolution before into the same factor. So values on the middle
between two codes, or within a few units of float32's last place, get either. On scales with few significant bits
(`quantization.exact_sums`) sums are exact, and then whole groups of values lie exactly on such a middle. Which code
they get says nothing about whether a layer is computed rightly; a value far from the middle that changes its code does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odm_deploy.grid import FloatArray, Grid

TIE_STEPS = 2.0**-16
"""Distance from a tie, in steps of the grid, at which either code is right. OpenVINO's int8 quantizers add an offset of
128 in float32, where numbers are this far apart. Of values spread evenly, 3 in 100,000 are as near to a tie."""
PIXELS = Grid(1.0, 0, 8)
"""The grid of the 8-bit image."""


def steps_to_code(values: FloatArray, codes: NDArray[np.integer], grid: Grid) -> NDArray[np.float64]:
    """How far each value would have to move to be rounded to its code; 0 where it is, same shape.

    Args:
        values: what arrived at the quantizer, any shape.
        codes: the grid's codes 0 .. 2^bits - 1, same shape.
        grid: the quantizer's grid.

    Returns:
        Distances in steps of the grid, computed in float64. Ends of the grid reach to infinity.
    """
    position = (values.astype(np.float64) - (grid.center or 0.0)) / grid.scale + grid.zero_point
    below = np.where(codes > 0, codes - 0.5 - position, 0.0)
    above = np.where(codes < grid.code_max, position - codes - 0.5, 0.0)
    return np.maximum(np.maximum(below, above), 0.0)


def count_ties(values: FloatArray, grid: Grid) -> int:
    """How many values lie exactly between two codes of the grid; of any shape, computed in float64."""
    position = (values.astype(np.float64) - (grid.center or 0.0)) / grid.scale + grid.zero_point
    lower = np.floor(position)
    return int(((position - lower == 0.5) & (lower >= 0) & (lower < grid.code_max)).sum())
