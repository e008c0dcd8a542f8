"""An exact model in integers alone: the specification in code, what a hardware team would be handed.

Every value is an integer n with an exponent e and means n * 2^e. There is no scale to multiply with and nothing is ever
rounded but where the model says so: in its quantizers and in the image at the end, half to even, by shifting bits.
Sums fit int32; int64 leaves room for the shifts. A runtime computes the model when its image equals this one, byte for
byte. Slower than any of them, short, and independent of every runtime, of torch and of float.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.quantization.exact import program as steps
from odm_deploy.quantization.exact.program import Integers, Program, Step

Watch = Callable[[Step, Integers, int], None]
"""Sees a step, its result's integers and their exponent."""

BAND_PX = 2048
"""Result pixels that a convolution works on at a time: what stays in a processor's cache takes half the time."""

_Value = tuple[Integers, int]


def interpret(program: Program, images: NDArray[np.uint8], watch: Watch | None = None) -> NDArray[np.uint8]:
    """Upscale images with integer arithmetic.

    Args:
        program: the model (`exact.trace.integer_program`).
        images: uint8 [N, 3, H, W] RGB.
        watch: called with every step's result; quantizers' results are codes minus their zero point.

    Returns:
        uint8 [N, 3, scale*H, scale*W] RGB.

    Raises:
        InputError: not such images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != program.channels:
        raise InputError("cannot interpret these images", why=f"{images.dtype} {images.shape}, not uint8 [N, 3, H, W]")
    values: dict[str, _Value] = {program.input: (images.astype(np.int64), 0)}
    last_reader = {source: step for step in program.steps for source in step.sources}
    for step in program.steps:
        values[step.name] = _run(step, [values[source] for source in step.sources])
        if watch is not None:
            watch(step, *values[step.name])
        for source in step.sources:
            if last_reader[source] is step:
                values.pop(source, None)
    n, exponent = values[program.output]
    return np.clip(shift_round(n, -exponent), 0, 255).astype(np.uint8)


def shift_round(n: Integers, bits: int) -> Integers:
    """Integers times 2^-bits, rounded half to even; any shape."""
    if bits <= 0:
        return n << -bits
    # Half a unit, less one where the quotient is even: exactly half then stays below the next.
    return (n + ((1 << (bits - 1)) - 1 + ((n >> bits) & 1))) >> bits


def _run(step: Step, sources: list[_Value]) -> _Value:
    n, exponent = sources[0]
    match step:
        case steps.Quantize():
            codes = shift_round(n, step.exponent - exponent) + step.zero_point
            return np.clip(codes, 0, 2**step.bits - 1) - step.zero_point, step.exponent
        case steps.Convolve():
            sums = _convolve(step, n)
            return (sums * _column(step.mantissa) << _column(step.shift)) + _column(step.bias), step.exponent
        case steps.Add():
            return _aligned(sources, np.add)
        case steps.AddConstant():
            return (n << (exponent - step.exponent)) + _column(step.constant), step.exponent
        case steps.Relu():
            return np.maximum(n, 0), exponent
        case steps.PRelu():
            return np.where(n >= 0, n << step.fraction_bits, n * _column(step.slope)), exponent - step.fraction_bits
        case steps.PixelShuffle():
            count, channels, height, width = n.shape
            f = step.factor
            blocks = n.reshape(count, channels // f**2, f, f, height, width).transpose(0, 1, 4, 2, 5, 3)
            return blocks.reshape(count, channels // f**2, height * f, width * f), exponent
        case steps.Enlarge():
            return n.repeat(step.factor, 2).repeat(step.factor, 3), exponent
        case steps.Pad():
            above, below, left, right = step.border
            # Its stubs know no mode that is not written out.
            pad: Callable[..., Integers] = np.pad
            return pad(n, [(0, 0), (0, 0), (above, below), (left, right)], mode=step.mode), exponent
        case _:
            assert isinstance(step, steps.Concat), f"no arithmetic for {type(step).__name__}"
            return _aligned(sources, lambda *parts: np.concatenate(parts, 1))


def _aligned(sources: list[_Value], combine: Callable[..., Integers]) -> _Value:
    """Combine results after shifting them to the finest exponent among them."""
    finest = min(exponent for _, exponent in sources)
    return combine(*(n << (exponent - finest) for n, exponent in sources)), finest


def _convolve(step: steps.Convolve, codes: Integers) -> Integers:
    """Sums of products of codes, int32: [N, I, H, W] -> [N, O, H', W']."""
    count = len(codes)
    (top, left), (down, across), (dilate_y, dilate_x) = step.padding, step.stride, step.dilation
    outputs, inputs, tall, wide = step.codes.shape
    padded = np.pad(codes.astype(np.int32), [(0, 0), (0, 0), (top, top), (left, left)])
    height = (padded.shape[2] - dilate_y * (tall - 1) - 1) // down + 1
    width = (padded.shape[3] - dilate_x * (wide - 1) - 1) // across + 1
    sources = padded.reshape(count, step.groups, inputs, *padded.shape[2:])
    weights = step.codes.astype(np.int32).reshape(step.groups, outputs // step.groups, inputs, tall, wide)
    sums = np.zeros((count, step.groups, outputs // step.groups, height, width), np.int32)
    band = max(BAND_PX // width, 1)
    for image, group, first in np.ndindex(count, step.groups, -(-height // band)):
        start, stop = first * band, min((first + 1) * band, height)
        part = sums[image, group, :, start:stop]
        for y, x in np.ndindex(tall, wide):
            window = sources[
                image,
                group,
                :,
                start * down + y * dilate_y : (stop - 1) * down + y * dilate_y + 1 : down,
                x * dilate_x : x * dilate_x + (width - 1) * across + 1 : across,
            ]
            # einsum has vector code for integers; matmul has none.
            part += np.einsum("oi,ip->op", weights[group, ..., y, x], window.reshape(inputs, -1)).reshape(part.shape)
    return sums.reshape(count, outputs, height, width).astype(np.int64)


def _column(per_channel: Integers) -> Integers:
    return per_channel.reshape(1, -1, 1, 1)
