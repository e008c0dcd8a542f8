"""One layer's flips and errors, and whether rounding explains them.

A quantizer rounds x / s to the nearest code. Runtimes compute that quotient in their own way: OpenVINO multiplies by
1 / s, rounded to float32, and folds the scales of the convolution before into the same factor. So values on the middle
between two codes (a tie), or within a few units of float32's last place, get either. On scales with few significant
bits (`quantization.exact`) sums are exact, and then whole groups of values lie exactly on such a middle. Which code
they get says nothing about whether a layer is computed rightly; a value far from the middle that changes its code does.

Codes hide what saturates, and what moves by less than a step. Where a quantizer's input goes on in float, too, along a
skip connection, it is compared itself. A value that moves by u steps crosses a tie with probability u, so the same
limits hold for it as for the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.grid import FloatArray, Grid

OUTPUT = "output"
"""Name under which the 8-bit image itself is compared, as the last "layer"."""

TIE_STEPS = 2.0**-16
"""Distance from a tie, in steps of the grid, at which either code is right. OpenVINO's int8 quantizers add an offset of
128 in float32, where numbers are this far apart. Of values spread evenly, 3 in 100,000 are as near to a tie."""
PIXELS = Grid(1.0, 0, 8)
"""The grid of the 8-bit image."""
MAX_TIE_RATE = 1e-4
"""Share of codes off ties that may flip in a layer that computes the right thing. On EDSR-baseline x4, ONNX Runtime and
OpenVINO stay below 3e-5 in every layer."""
MAX_FLIP_STEPS = 0.01
"""Distance from a tie, in steps, beyond which rounding explains not even a single flip: errors that move values so far
would flip fifty times as many codes as `MAX_TIE_RATE` allows. Unless the reference's own rounding moves them as far."""
FEW_TIES = 3
"""Flips that prove nothing, however few codes were compared."""
FLOOR_FACTOR = 10.0
"""How many times the reference's own flips and errors are allowed, for layers behind much float arithmetic."""


@dataclass
class LayerParity:
    """Flips of one layer's codes, teacher-forced, summed over images."""

    name: str
    codes: int = 0
    """Codes compared."""
    flips: int = 0
    """Codes that differ from the reference's."""
    max_step: int = 0
    """Largest difference between two codes."""
    floor_flips: int = 0
    """Codes of the reference that differ between its float32 and its float64 computation."""
    tie_flips: int = 0
    """Flipped codes whose value lies on a rounding tie, within `TIE_STEPS`, between the two codes."""
    ties: int = 0
    """Values that lie exactly between two codes."""
    furthest_steps: float = 0.0
    """How far any flipped value lies from where the code it got begins, in steps of the layer's grid."""
    floor_moved_steps: float = 0.0
    """How far any of the reference's values moves between float32 and float64, in steps, within the grid."""
    exact: bool = False
    """Whether the model's arithmetic never rounds, so that no tie excuses a flip."""
    floats: int = 0
    """Values of the quantizer's input compared as they are; 0 where nothing else reads them."""
    float_error_sum: float = 0.0
    """Sum of their distances from the reference's, in steps of the layer's grid."""
    float_error_max: float = 0.0
    """The largest of these distances."""
    floor_error_sum: float = 0.0
    """Sum of the distances between the reference's float32 and float64 values, in steps."""
    floor_error_max: float = 0.0
    """The largest of those."""

    @property
    def flip_rate(self) -> float:
        """Share of differing codes."""
        return self.flips / max(self.codes, 1)

    @property
    def tie_flip_rate(self) -> float:
        """Share of codes that differ on a rounding tie."""
        return self.tie_flips / max(self.codes, 1)

    @property
    def floor_flip_rate(self) -> float:
        """Share of codes that rounding alone flips."""
        return self.floor_flips / max(self.codes, 1)

    @property
    def is_clean(self) -> bool:
        """Whether rounding explains the errors, and the flips: to the neighbouring code, near a tie, on it or rare."""
        if self.exact:
            return self.flips == 0 and self.float_error_max == 0.0
        if not self.floats_are_clean:
            return False
        if self.max_step > 1 or self.furthest_steps > max(MAX_FLIP_STEPS, FLOOR_FACTOR * self.floor_moved_steps):
            return False
        allowed = self.codes * max(MAX_TIE_RATE, FLOOR_FACTOR * self.floor_flip_rate)
        return self.flips - self.tie_flips <= max(allowed, FEW_TIES)

    @property
    def floats_are_clean(self) -> bool:
        """Whether rounding explains how far the values that go on in float are from the reference's."""
        allowed_sum = max(MAX_TIE_RATE * self.floats, FLOOR_FACTOR * self.floor_error_sum)
        allowed = max(MAX_FLIP_STEPS, FLOOR_FACTOR * self.floor_error_max)
        return self.float_error_sum <= allowed_sum and self.float_error_max <= allowed

    def add_floats(self, found: FloatArray, expected: FloatArray, floor: FloatArray, grid: Grid) -> None:
        """Compare one image's inputs of the quantizer that go on in float.

        Args:
            found: the runtime's.
            expected: the reference's, float32.
            floor: the reference's in float64.
            grid: the quantizer's grid, whose step is the unit.

        Raises:
            InputError: the runtime's values have another shape than the reference's.
        """
        _check_shapes(f"the float input of {self.name}", found, expected)
        # What is not a number equals nothing, itself included, and is infinitely far from everything.
        errors = np.nan_to_num(np.abs(found.astype(np.float64) - expected) / grid.scale, nan=np.inf, posinf=np.inf)
        floors = np.abs(floor - expected) / grid.scale
        self.floats += errors.size
        self.float_error_sum += float(errors.sum())
        self.float_error_max = max(self.float_error_max, float(errors.max(initial=0.0)))
        self.floor_error_sum += float(floors.sum())
        self.floor_error_max = max(self.floor_error_max, float(floors.max(initial=0.0)))

    def add(
        self,
        found: NDArray[np.integer],
        expected: NDArray[np.integer],
        floor: NDArray[np.integer],
        values: FloatArray,
        floor_values: FloatArray,
        grid: Grid,
    ) -> None:
        """Count one image's codes, all of one shape.

        Args:
            found: the runtime's.
            expected: the reference's.
            floor: the reference's in float64.
            values: what the reference's quantizer was given, float32.
            floor_values: the same, computed in float64.
            grid: the grid of that quantizer.

        Raises:
            InputError: the runtime's codes have another shape than the reference's.
        """
        _check_shapes(f"the codes of {self.name}", found, expected)
        difference = np.abs(found.astype(np.int16) - expected.astype(np.int16))
        flipped = difference > 0
        distances = steps_to_code(values[flipped], found[flipped].astype(np.int16), grid)
        self.codes += difference.size
        self.flips += int(flipped.sum())
        self.tie_flips += int((distances <= TIE_STEPS).sum())
        self.ties += count_ties(values, grid)
        self.furthest_steps = max(self.furthest_steps, float(distances.max(initial=0.0)))
        self.max_step = max(self.max_step, int(difference.max(initial=0)))
        self.floor_flips += int((floor != expected).sum())
        moved = np.abs(_within(values, grid) - _within(floor_values, grid))
        self.floor_moved_steps = max(self.floor_moved_steps, float(moved.max(initial=0.0)))


def _check_shapes(what: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        raise InputError(f"{what} cannot be compared", why=f"shape {found.shape}, the reference's {expected.shape}")


def steps_to_code(values: FloatArray, codes: NDArray[np.integer], grid: Grid) -> NDArray[np.float64]:
    """How far each value would have to move to be rounded to its code; 0 where it is.

    Args:
        values: what arrived at the quantizer, any shape.
        codes: what they were rounded to, same shape; of the grid are 0 .. 2^bits - 1.
        grid: the quantizer's grid.

    Returns:
        Steps of the grid, same shape. The first and the last code reach to infinity; codes that the grid does not have
        are infinitely far from every value.
    """
    position = _position(values, grid)
    below = np.where(codes > 0, codes - 0.5 - position, 0.0)
    above = np.where(codes < grid.code_max, position - codes - 0.5, 0.0)
    steps = np.maximum(np.maximum(below, above), 0.0)
    return np.where((codes < 0) | (codes > grid.code_max), np.inf, steps)


def count_ties(values: FloatArray, grid: Grid) -> int:
    """How many values, of any shape, lie exactly between two codes of the grid."""
    position = _position(values, grid)
    lower = np.floor(position)
    return int(((position - lower == 0.5) & (lower >= 0) & (lower < grid.code_max)).sum())


def _position(values: FloatArray, grid: Grid) -> NDArray[np.float64]:
    """Where values lie among the codes, before rounding."""
    return (values.astype(np.float64) - (grid.center or 0.0)) / grid.scale + grid.zero_point


def _within(values: FloatArray, grid: Grid) -> NDArray[np.float64]:
    """The same, no further out than where the first and the last code end: what saturates cannot flip."""
    return np.clip(_position(values, grid), -0.5, grid.code_max + 0.5)
