"""The static grid: the one definition of activation quantization that everything else agrees with.

A b-bit grid maps a real x to a code q in [0, 2^b - 1] and back to a level:

    q = clamp(round_half_even(x / s) + z, 0, 2^b - 1)        x^ = s * (q - z)

with a float32 scale s > 0 and an integer zero point z in [0, 2^b - 1], so that zero is a level. Convolutions pad with
zeros, and on such a grid a padded zero is a code like any other: that is what makes integer engines exact.

A *free* grid (Eq. 1 of the ODM paper taken literally) does not need zero to be a level. It is stored by its center
c = l + 2^(b-1) * s, because that is how integer engines evaluate it (signed codes around c):

    q = clamp(round_half_even((x - c) / s) + 2^(b-1), 0, 2^b - 1)        x^ = s * (q - 2^(b-1)) + c

Everything is computed in float32 (or float64 where the input is float64, to measure the noise floor), also under
autocast: x / s in float16 alone flips about 1 % of 8-bit codes.

This module is numpy only; `quantization.fake_quant` is the same arithmetic in torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from odm_deploy.errors import InputError

MIN_BITS = 2
MAX_BITS = 8

# The smallest normal float32: runtimes that flush denormals would divide by zero on anything below.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Grid:
    """A static quantization grid of one layer's input.

    Raises:
        InputError: `bits` outside 2..8, a scale that is not a positive float32, or a zero point that is not a code.
    """

    scale: float
    """Distance between two levels; exactly representable in float32 (construction rounds it there)."""
    zero_point: int
    """Code of the level 0.0. On a free grid always 2^(bits-1), the code of `center`."""
    bits: int
    """Width of a code, 2 to 8."""
    center: float | None = None
    """None on an ordinary grid. On a free grid the real value of the code 2^(bits-1); float32."""

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise InputError("no such grid", why=f"{self.bits} bits", fix=f"use {MIN_BITS} to {MAX_BITS}")
        scale = float(np.float32(self.scale))
        if not math.isfinite(scale) or scale < _SMALLEST_SCALE:
            raise InputError(
                "no such grid", why=f"scale {self.scale}", fix="scales are positive, normal float32 numbers"
            )
        if not 0 <= self.zero_point <= self.code_max:
            raise InputError(
                "no such grid",
                why=f"zero point {self.zero_point}",
                fix=f"at {self.bits} bits it is 0 to {self.code_max}",
            )
        object.__setattr__(self, "scale", scale)
        if self.center is not None:
            if not math.isfinite(self.center) or self.zero_point != self.code_half:
                raise InputError("no such grid", why=f"center {self.center}, zero point {self.zero_point}")
            object.__setattr__(self, "center", float(np.float32(self.center)))

    @classmethod
    def from_range(
        cls, lower: float, upper: float, bits: int, *, power_of_two: bool = False, symmetric: bool = False
    ) -> Grid:
        """The grid whose levels span [lower, upper] once the range is widened to hold zero and zero is snapped.

        With `power_of_two` the scale is rounded up to a power of two, so that no arithmetic on the grid ever rounds.
        With `symmetric` grids of 8 bits have zero in their middle (`is_symmetric`).

        Raises:
            InputError: a bound that is not finite, or lower > upper.
        """
        if not (math.isfinite(lower) and math.isfinite(upper)) or lower > upper:
            raise InputError("no such range", why=f"[{lower}, {upper}]")
        lower, upper = min(lower, 0.0), max(upper, 0.0)
        code_max = 2**bits - 1
        # An all-zero layer has no range; any positive scale represents it exactly, with zero in the middle so that
        # engines need no shift, whose size would have nothing to do with the values. A range of denormals gets the
        # smallest scale there is.
        symmetric = (symmetric and bits == MAX_BITS) or lower == upper
        half = 2 ** (bits - 1)
        step = max(-lower / half, upper / (half - 1)) if symmetric else (upper - lower) / code_max
        scale = max(step, _SMALLEST_SCALE) if upper > lower else 1.0
        if power_of_two:
            scale = 2.0 ** math.ceil(math.log2(scale))
        scale = float(np.float32(scale))
        if power_of_two and bits == MAX_BITS:
            lower -= shared_room(lower, upper, scale)
        zero_point = half if symmetric else nearest_zero_point(lower, scale, bits, exact_ties=power_of_two)
        return cls(scale, zero_point, bits)

    @classmethod
    def free(cls, lower: float, upper: float, bits: int) -> Grid:
        """The free grid whose first level is `lower` and whose last is `upper`; zero need not be a level.

        Raises:
            InputError: a bound that is not finite, or lower >= upper.
        """
        if not (math.isfinite(lower) and math.isfinite(upper)) or lower >= upper:
            raise InputError("no such range", why=f"[{lower}, {upper}]")
        scale = float(np.float32(max((upper - lower) / (2**bits - 1), _SMALLEST_SCALE)))
        half = 2 ** (bits - 1)
        return cls(scale, half, bits, center=lower + half * scale)

    @property
    def code_max(self) -> int:
        """The largest code, 2^bits - 1."""
        return 2**self.bits - 1

    @property
    def code_half(self) -> int:
        """2^(bits-1): what signed engines subtract from a code."""
        return 2 ** (self.bits - 1)

    @property
    def is_free(self) -> bool:
        """Whether zero need not be a level."""
        return self.center is not None

    @property
    def is_symmetric(self) -> bool:
        """Whether zero is the middle one of 256 codes, and codes less that are int8, as engines store them."""
        return not self.is_free and self.bits == MAX_BITS and self.zero_point == self.code_half

    @property
    def lower(self) -> float:
        """The first level."""
        return float(self.dequantize(np.zeros(1, np.uint8))[0])

    @property
    def upper(self) -> float:
        """The last level."""
        return float(self.dequantize(np.full(1, self.code_max, np.uint8))[0])

    @property
    def pad_value(self) -> float:
        """The level nearest zero: what convolutions on this grid pad with. 0.0 on an ordinary grid."""
        return float(self.fake_quantize(np.zeros(1, np.float32))[0])

    @property
    def is_power_of_two(self) -> bool:
        """Whether the scale is a power of two."""
        return math.frexp(self.scale)[0] == 0.5

    def quantize(self, x: FloatArray) -> npt.NDArray[np.uint8]:
        """Codes of `x`, any shape. float64 input is computed in float64, everything else in float32."""
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        values = x.astype(dtype, copy=False)
        if self.center is not None:
            values = values - dtype(self.center)
        # Clamp as float: an integer conversion of a huge quotient would wrap around. A quotient beyond float32 becomes
        # infinite and is clamped like any other.
        with np.errstate(over="ignore"):
            codes = np.clip(np.rint(values / dtype(self.scale)) + self.zero_point, 0, self.code_max)
        return codes.astype(np.uint8)

    def dequantize(self, codes: npt.NDArray[np.uint8], dtype: npt.DTypeLike = np.float32) -> FloatArray:
        """Levels of `codes`, same shape, as `dtype` (float32 or float64)."""
        kind = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        levels = (codes.astype(kind) - kind(self.zero_point)) * kind(self.scale)
        return levels if self.center is None else levels + kind(self.center)

    def fake_quantize(self, x: FloatArray) -> FloatArray:
        """The level nearest to each value of `x`, same shape; float32, or float64 for float64 input."""
        return self.dequantize(self.quantize(x), np.float64 if x.dtype == np.float64 else np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, exact: a float32 survives the trip through a Python float."""
        plain: dict[str, Any] = {"scale": self.scale, "zero_point": self.zero_point, "bits": self.bits}
        return plain if self.center is None else {**plain, "center": self.center}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Grid:
        """The grid `to_dict` described.

        Raises:
            InputError: missing or unknown keys, or values of another type.
        """
        keys = {"scale", "zero_point", "bits"}
        if not keys <= set(plain) <= keys | {"center"}:
            raise InputError("not a grid", why=f"keys {sorted(plain)}")
        scale, zero_point, bits, center = (plain.get(k) for k in ("scale", "zero_point", "bits", "center"))
        if (
            not isinstance(scale, float)
            or not isinstance(zero_point, int)
            or not isinstance(bits, int)
            or not (center is None or isinstance(center, float))
        ):
            raise InputError("not a grid", why=repr(plain)[:200])
        return cls(scale, zero_point, bits, center)


def zero_point_step(bits: int, *, exact_ties: bool) -> int:
    """What zero points are multiples of: 2 on 8-bit grids whose arithmetic is exact, 1 on all others.

    Where scales are short, values exactly between two codes are common. Signed engines shift 8-bit codes by 128 - z; an
    even shift keeps even codes even, so that half to even is the same code there. The range moves by at most half a
    step for it.
    """
    return 2 if exact_ties and bits == MAX_BITS else 1


def shared_room(lower: float, upper: float, scale: float) -> float:
    """How much further down than `lower` the 256 levels of a range begin whose scale was rounded to a power of two.

    They span up to twice the range, or less than it. The levels between are the same wherever they begin, so other
    images find room on either side; a range that ends at zero is one of values that never change their sign.
    """
    return (scale * (2**MAX_BITS - 1) - (upper - lower)) / 2 if lower < 0 < upper else 0.0


def nearest_zero_point(lower: float, scale: float, bits: int, *, exact_ties: bool) -> int:
    """The code of zero on the grid that begins nearest to `lower`; a multiple of `zero_point_step`."""
    step = zero_point_step(bits, exact_ties=exact_ties)
    return step * min(max(round(-lower / scale / step), 0), (2**bits - 1) // step)
