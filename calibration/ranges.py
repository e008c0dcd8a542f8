"""From what was observed to a grid: min-max, percentile, or the smallest squared error.

Super-resolution features need their tails: the 1 % that the ODM papers' initialisation clips (99th percentile) costs
about a decibel without training. But min-max hands the step to a single outlier, which costs as much at 4 bits. The
smallest squared error weighs the two, and is the only choice here that needs no knob turned for each width.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import numpy as np

from calibration.observers import InputObserver
from odm_deploy.errors import InputError
from odm_deploy.grid import Grid


class RangeMethod(StrEnum):
    """How the range of a layer's input is chosen."""

    MINMAX = "minmax"
    """From the smallest to the largest value seen."""
    PERCENTILE = "percentile"
    """Mean over the images of a percentile and its mirror (ODM's initialisation, there the 99th)."""
    MSE = "mse"
    """The range whose grid has the smallest squared error on the observed histogram."""


def choose_grid(
    observer: InputObserver, bits: int, method: RangeMethod, *, free: bool = False, power_of_two: bool = False
) -> Grid:
    """The grid of one layer's input.

    Args:
        observer: what was seen of it; with a percentile where `method` asks for one.
        bits: width of a code, 2 to 8.
        method: how to choose the range.
        free: levels need not hold zero.
        power_of_two: the scale is a power of two.

    Raises:
        InputError: no image was observed.
    """
    if not observer.images:
        raise InputError(f"nothing is known of the input of {observer.name}", why="it saw no image")
    grid_of = _grid_maker(bits, free=free, power_of_two=power_of_two)
    if method is RangeMethod.PERCENTILE:
        return grid_of(*observer.percentile_range)
    if method is RangeMethod.MINMAX:
        return grid_of(observer.minimum, observer.maximum)
    return _smallest_error(observer, grid_of)


def relative_mismatch(observer: InputObserver, grid: Grid) -> float:
    """||X - q(X)||_2 / ||X||_2 over all observed inputs X: the papers' mismatch, freed of the layer's size."""
    values, counts = observer.histogram.occupied()
    energy = float(counts @ np.square(values.astype(np.float64)))
    return float(np.sqrt(_squared_error(observer, grid) / energy)) if energy else 0.0


def clipped_share(observer: InputObserver, grid: Grid) -> float:
    """Share of the observed inputs more than half a step beyond the first or last level."""
    values, counts = observer.histogram.occupied()
    outside = (values < grid.lower - grid.scale / 2) | (values > grid.upper + grid.scale / 2)
    return float(counts[outside].sum() / counts.sum())


def _grid_maker(bits: int, *, free: bool, power_of_two: bool) -> Callable[[float, float], Grid]:
    def make(lower: float, upper: float) -> Grid:
        # A constant input leaves a free grid no range; an ordinary one spans from zero to it.
        if free and lower < upper:
            return Grid.free(lower, upper, bits)
        return Grid.from_range(lower, upper, bits, power_of_two=power_of_two)

    return make


def _squared_error(observer: InputObserver, grid: Grid) -> float:
    values, counts = observer.histogram.occupied()
    return float(counts @ np.square(values - grid.fake_quantize(values), dtype=np.float64))


# Geometric, because at 2 bits the best range of a heavy-tailed input is a small part of what was seen.
_SHRINK = np.geomspace(1.0, 0.02, 121)
_SWEEPS = 3


def _smallest_error(observer: InputObserver, grid_of: Callable[[float, float], Grid]) -> Grid:
    """Shrink the upper and the lower bound in turn, each to where the squared error is smallest.

    The two bounds interact through the step only, so a few sweeps settle.
    """
    lower, upper = observer.minimum, observer.maximum
    best = grid_of(lower, upper)
    best_error = _squared_error(observer, best)
    for _ in range(_SWEEPS):
        before = lower, upper
        for shrink_upper in (True, False):
            for factor in _SHRINK:
                low = lower if shrink_upper else observer.minimum * factor
                high = observer.maximum * factor if shrink_upper else upper
                if low > high:
                    continue
                grid = grid_of(float(low), float(high))
                error = _squared_error(observer, grid)
                if error < best_error:
                    best, best_error, lower, upper = grid, error, float(low), float(high)
        if (lower, upper) == before:
            break
    return best
