"""The proof that no float32 engine rounds anywhere in an exact model, from its actual codes.

Every value of an integer program is a whole number n of units 2^e. Float32 holds n exactly while |n| < 2^24, and adds
exactly while every partial sum stays below that: then the order of a sum, fused operations, the width of vectors, the
number of threads and the runtime make no difference, because no operation ever rounds. So it is enough to bound |n|:

- convolution: with input codes in [lowest, highest] a partial sum over any subset of the products, in any order, lies
  between the sum of min(w * lowest, w * highest, 0) and that of max(..., 0); the bias comes on top. Engines without
  zero points shift 8-bit codes to -128..127 and the bias with them (`lowering.dialects`): bounded the same way;
- addition: engines fuse it into the convolution in front of it, whose partial sums then start from the other operand,
  so that bound is added to the convolution's, not to its result's;
- quantizer: dividing by a power of two is exact; engines that compute around an offset of 128 codes add that;
- PReLU: n times the slope's digits.

Units are taken per channel, because weight scales are. Int32 accumulators hold 2^31 and are never the tighter limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.quantization.exact import program as steps
from odm_deploy.quantization.exact.program import Program, Step
from odm_deploy.quantization.power_of_two import FLOAT32_BITS, bits_of

OFFSET_CODES = 128
"""Codes that engines shift an 8-bit grid by."""

# Python integers in object arrays: bounds of a model that is not exact may exceed any fixed width.
Exact = NDArray[Any]

Channel = tuple[str, int]
"""A layer and one of its output channels."""


@dataclass(frozen=True)
class Bound:
    """The largest |n| that one step can meet, over all channels and all images."""

    step: str
    layer: str
    """The layer it belongs to, or the last one before it."""
    magnitude: int
    """In units of the channel it is largest in."""
    origins: frozenset[Channel] = frozenset()
    """Where it fails: the layers' channels that set the unit. Coarser weights there halve the bound."""

    @property
    def bits(self) -> float:
        """log2 of the magnitude; exact below 24."""
        return bits_of(self.magnitude)

    @property
    def holds(self) -> bool:
        """Whether float32 is exact here."""
        return self.magnitude < 2**FLOAT32_BITS


@dataclass(frozen=True)
class _Values:
    """What is known of a result, per channel."""

    unit: Exact
    """e: values are whole multiples of 2^e."""
    largest: Exact
    """Largest |n|, in that unit."""
    partial: Exact
    """Largest |n| of the partial sums that a fused addition may start from."""
    origins: list[frozenset[Channel]]
    """Which layers' channels set the unit."""

    def in_units(self, finer: Exact) -> tuple[Exact, Exact]:
        """`largest` and `partial` in units of 2^finer."""
        factor = 2 ** (self.unit - finer)
        return self.largest * factor, self.partial * factor


@dataclass(frozen=True)
class _Finding:
    """A step's result, and what it met on the way to it."""

    result: _Values
    magnitude: Exact
    """Largest |n| per channel, in the channel's unit."""
    origins: list[frozenset[Channel]]
    """Of those units."""


def bounds_of(program: Program) -> list[Bound]:
    """The bound of every step, in program order."""
    nothing = [frozenset[Channel]()] * program.channels
    pixels = _whole([255] * program.channels)
    known = {program.input: _Values(_whole([0] * program.channels), pixels, pixels, nothing)}
    by_name = {step.name: step for step in program.steps}
    bounds: list[Bound] = []
    layer = "the image"
    for step in program.steps:
        layer = step.layer if isinstance(step, (steps.Quantize, steps.Convolve)) else layer
        if isinstance(step, steps.Convolve):
            quantizer = by_name[step.sources[0]]
            assert isinstance(quantizer, steps.Quantize), f"{step.name} reads no codes"
            finding = _convolve(step, quantizer)
        else:
            finding = _examine(step, [known[name] for name in step.sources])
        known[step.name] = finding.result
        too_large = (c for c, magnitude in enumerate(finding.magnitude) if magnitude >= 2**FLOAT32_BITS)
        origins = frozenset[Channel]().union(*(finding.origins[c] for c in too_large))
        bounds.append(Bound(step.name, layer, int(finding.magnitude.max()), origins))
    return bounds


def prove(program: Program) -> list[Bound]:
    """The bounds of every step, all of them below 2^24.

    Raises:
        InputError: a bound that float32 cannot hold; the line names the layer, the bound and the remedy.
    """
    bounds = bounds_of(program)
    for bound in bounds:
        if not bound.holds:
            at = "" if bound.step == bound.layer else f", at {bound.step}"
            culprits = sorted({layer for layer, _ in bound.origins}) or [bound.layer]
            raise InputError(
                f"{bound.layer} is not exact in float32",
                why=f"its sums reach 2^{bound.bits:.1f} units{at}, float32 holds 2^{FLOAT32_BITS}",
                fix=f"give {', '.join(culprits[:3])}{' ...' if culprits[3:] else ''} coarser weight scales or fewer "
                "bits, and biases that are multiples of input scale * weight scale",
            )
    return bounds


def widest(bounds: Iterable[Bound]) -> dict[str, Bound]:
    """The largest bound of each layer, its quantizer and what follows it included, by layer."""
    found: dict[str, Bound] = {}
    for bound in bounds:
        if bound.layer not in found or found[bound.layer].magnitude < bound.magnitude:
            found[bound.layer] = bound
    return found


def _examine(step: Step, sources: list[_Values]) -> _Finding:
    """Apply a step's rule."""
    match step:
        case steps.Quantize():
            return _quantize(step, sources[0])
        case steps.Add():
            return _add(*sources)
        case steps.AddConstant():
            count = len(sources[0].unit)
            constant = np.broadcast_to(np.abs(step.constant).astype(object), (count,))
            exponent = np.broadcast_to(_whole([step.exponent]), (count,))
            return _add(sources[0], _Values(exponent, constant, constant, [frozenset[Channel]()] * count))
        case steps.PRelu():
            source = sources[0]
            factor = np.maximum(np.abs(step.slope), 2**step.fraction_bits).astype(object)
            return _settled(source.unit - step.fraction_bits, source.largest * factor, source.origins)
        case steps.PixelShuffle():
            return _shuffle(step, sources[0])
        case steps.Concat():
            joined = [np.concatenate(parts) for parts in zip(*((s.unit, s.largest) for s in sources), strict=True)]
            return _settled(joined[0], joined[1], [origin for source in sources for origin in source.origins])
        case _:
            assert isinstance(step, (steps.Relu, steps.Enlarge, steps.Pad)), f"no rule for {type(step).__name__}"
            return _settled(sources[0].unit, sources[0].largest, sources[0].origins)


def _quantize(step: steps.Quantize, source: _Values) -> _Finding:
    """The quotient is exact; so has to be its sum with the offset. Codes themselves are small."""
    unit = np.minimum(source.unit, step.exponent)
    offset = OFFSET_CODES * 2 ** (step.exponent - unit)
    codes = _whole([max(-step.lowest, step.highest)] * len(unit))
    result = _Values(_whole([step.exponent] * len(unit)), codes, codes, [frozenset[Channel]()] * len(unit))
    return _Finding(result, source.in_units(unit)[0] + offset, source.origins)


def _convolve(step: steps.Convolve, quantizer: steps.Quantize) -> _Finding:
    """Any subset of the products and the bias, with codes as they are and as engines shift them."""
    weight = step.codes.astype(np.int64).reshape(step.codes.shape[0], -1)
    # A bias may be finer than the products: the channel's unit is what divides both.
    spare = _whole([min(int(s), _trailing_zeros(int(b))) for s, b in zip(step.shift, step.bias, strict=True)])
    factor = step.mantissa.astype(object) * 2 ** (step.shift.astype(object) - spare)
    bias = step.bias.astype(object) // 2**spare
    largest = _subset_bound(weight, quantizer.lowest, quantizer.highest) * factor + np.abs(bias)
    partial = largest
    if quantizer.highest >= OFFSET_CODES or quantizer.lowest < -OFFSET_CODES:
        # codes - 128 .. 127 around the middle code; the bias makes up for it.
        moved = bias + (quantizer.lowest + OFFSET_CODES) * weight.sum(1).astype(object) * factor
        shifted = _subset_bound(weight, -OFFSET_CODES, OFFSET_CODES - 1) * factor + np.abs(moved)
        partial = np.maximum(largest, shifted)
    origins = [frozenset({(step.layer, channel)}) for channel in range(len(weight))]
    return _Finding(_Values(step.exponent + spare, largest, partial, origins), partial, origins)


def _subset_bound(weight: NDArray[np.int64], lowest: int, highest: int) -> Exact:
    """Largest |sum| over any subset of weight * code, per output channel, codes in [lowest, highest]."""
    ends = np.stack([weight * lowest, weight * highest])
    above = np.maximum(ends.max(0), 0).sum(1)
    below = np.minimum(ends.min(0), 0).sum(1)
    return np.maximum(above, -below).astype(object)


def _add(a: _Values, b: _Values) -> _Finding:
    """One operand's result on top of the other's partial sums."""
    unit = np.minimum(a.unit, b.unit)
    (largest_a, partial_a), (largest_b, partial_b) = a.in_units(unit), b.in_units(unit)
    met = np.maximum(largest_a + partial_b, partial_a + largest_b)
    origins = [
        (in_a if unit_a == finest else frozenset[Channel]()) | (in_b if unit_b == finest else frozenset[Channel]())
        for finest, unit_a, unit_b, in_a, in_b in zip(unit, a.unit, b.unit, a.origins, b.origins, strict=True)
    ]
    total = largest_a + largest_b
    return _Finding(_Values(unit, total, total, origins), met, origins)


def _shuffle(step: steps.PixelShuffle, source: _Values) -> _Finding:
    """Every f^2 channels become one, with the finest of their units."""
    count = step.factor**2
    unit = source.unit.reshape(-1, count).min(1)
    finest = np.repeat(unit, count)
    largest, _ = source.in_units(finest)
    origins = [
        frozenset[Channel]().union(
            *(source.origins[c] for c in range(first, first + count) if source.unit[c] == finest[c])
        )
        for first in range(0, len(finest), count)
    ]
    return _settled(unit, largest.reshape(-1, count).max(1), origins)


def _settled(unit: Exact, largest: Exact, origins: list[frozenset[Channel]]) -> _Finding:
    """The result of a step that adds nothing."""
    return _Finding(_Values(unit, largest, largest, origins), largest, origins)


def _whole(values: Iterable[int]) -> Exact:
    return np.array([int(value) for value in values], object)


def _trailing_zeros(value: int) -> int:
    """How often a number can be halved; for zero, which always can, more often than anybody asks."""
    return (value & -value).bit_length() - 1 if value else 1 << 30
