"""From what was observed to a grid: min-max, percentile, or the smallest squared error.

Super-resolution features need their tails: the 1 % that the ODM papers' initialisation clips (99th percentile) costs
about a decibel without training. But min-max hands the step to a single outlier, which costs as much at 4 bits. The
smallest squared error weighs the two, and is the only choice here that needs no knob turned for each width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from itertools import product

import numpy as np

from odm_deploy.errors import InputError
from odm_deploy.grid import FloatArray, Grid
from odm_deploy.quantization.observers import InputObserver


class RangeMethod(StrEnum):
    """How the range of a layer's input is chosen."""

    MINMAX = "minmax"
    """From the smallest to the largest value seen."""
    PERCENTILE = "percentile"
    """Mean over the images of a percentile and its mirror (ODM's initialisation, there the 99th)."""
    MSE = "mse"
    """The range whose grid has the smallest squared error on the observed histogram."""


def choose_grid(
    observer: InputObserver,
    bits: int,
    method: RangeMethod,
    *,
    free: bool = False,
    power_of_two: bool = False,
    symmetric: bool = False,
) -> Grid:
    """The grid of one layer's input.

    Args:
        observer: what was seen of it; with a percentile where `method` asks for one.
        bits: width of a code, 2 to 8.
        method: how to choose the range.
        free: levels need not hold zero.
        power_of_two: the scale is a power of two.
        symmetric: at 8 bits zero is in the middle.

    Raises:
        InputError: no image was observed.
    """
    if not observer.images:
        raise InputError(f"nothing is known of the input of {observer.name}", why="it saw no image")

    def grid_of(lower: float, upper: float) -> Grid:
        # A constant input leaves a free grid no range; an ordinary one spans from zero to it.
        if free and lower < upper:
            return Grid.free(lower, upper, bits)
        return Grid.from_range(lower, upper, bits, power_of_two=power_of_two, symmetric=symmetric)

    if method is RangeMethod.PERCENTILE:
        return grid_of(*observer.percentile_range)
    if method is RangeMethod.MINMAX:
        return grid_of(observer.minimum, observer.maximum)
    return _smallest_error(observer, grid_of)


def relative_mismatch(observer: InputObserver, grid: Grid) -> float:
    """||X - q(X)||_2 / ||X||_2 over all observed inputs X: the papers' mismatch, freed of the layer's size."""
    values, counts = observer.histogram.occupied()
    energy = float(counts @ np.square(values, dtype=np.float64))
    return math.sqrt(_squared_error(values, counts, grid) / energy) if energy else 0.0


def clipped_share(observer: InputObserver, grid: Grid) -> float:
    """Share of the observed inputs more than half a step beyond the first or last level."""
    values, counts = observer.histogram.occupied()
    outside = (values < grid.lower - grid.scale / 2) | (values > grid.upper + grid.scale / 2)
    return float(counts[outside].sum() / counts.sum())


def _squared_error(values: FloatArray, counts: FloatArray, grid: Grid) -> float:
    return float(counts @ np.square(values - grid.fake_quantize(values), dtype=np.float64))


_SMALLEST_SHARE = 0.02
"""How far a bound may shrink: at 2 bits the best range of a heavy-tailed input is a small part of what was seen."""
_COARSE = 17
_FINE = 9
_ZOOMS = 2


def _smallest_error(observer: InputObserver, grid_of: Callable[[float, float], Grid]) -> Grid:
    """Shrink both bounds to where the squared error is smallest: a coarse search, then two finer ones around its best.

    The bounds are searched jointly: at low widths, moving one at a time stops far from the best pair.
    """
    # Geometric, because the step is proportional to the range.
    factors = np.geomspace(_SMALLEST_SHARE, 1.0, _COARSE)
    ratio = factors[1] / factors[0]
    errors: dict[Grid, float] = {}
    error, grid, (low, high) = _best_pair(observer, grid_of, factors, factors, errors)
    for _ in range(_ZOOMS):
        nearby = np.geomspace(1 / ratio, ratio, _FINE)
        ratio = nearby[1] / nearby[0]
        finer = _best_pair(observer, grid_of, np.minimum(low * nearby, 1.0), np.minimum(high * nearby, 1.0), errors)
        if finer[0] < error:
            error, grid, (low, high) = finer
    return grid


def _best_pair(
    observer: InputObserver,
    grid_of: Callable[[float, float], Grid],
    low_factors: FloatArray,
    high_factors: FloatArray,
    errors: dict[Grid, float],
) -> tuple[float, Grid, tuple[float, float]]:
    """(squared error, grid, factors) of the best among all pairs of shrunk bounds.

    `errors` are those of grids known so far, and grow: many pairs give one grid, as powers of two and symmetry do.
    """
    values, counts = observer.histogram.occupied()
    if observer.minimum == 0:
        low_factors = low_factors[-1:]
    if observer.maximum == 0:
        high_factors = high_factors[-1:]
    best_error, best, best_factors = np.inf, None, (1.0, 1.0)
    for low, high in product(low_factors, high_factors):
        lower, upper = float(low * observer.minimum), float(high * observer.maximum)
        if lower > upper:
            continue
        grid = grid_of(lower, upper)
        if grid not in errors:
            errors[grid] = _squared_error(values, counts, grid)
        error = errors[grid]
        if best is None or error < best_error:
            best_error, best, best_factors = error, grid, (float(low), float(high))
    assert best is not None, "bounds shrunk alike are always in order"
    return best_error, best, best_factors
