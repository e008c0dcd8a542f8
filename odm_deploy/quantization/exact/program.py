"""An exact model as integer arithmetic: what `interpreter` runs and `bounds` proves.

Every tensor is an array of integers n with one exponent e, and stands for the real numbers n * 2^e. There are no
scales: where a float engine multiplies by one, the exponent changes or bits are shifted. Plain integers and numpy
arrays only; `trace` makes a program of a frozen torch model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One operation; its result has the step's name."""

    name: str
    """Of the result, unique in the program."""
    sources: tuple[str, ...]
    """Names of the results it reads; `Program.input` is the image."""


@dataclass(frozen=True)
class Quantize(Step):
    """q = clamp(round_half_even(n * 2^(e - exponent)) + zero_point, 0, 2^bits - 1); the result is q - zero_point."""

    layer: str
    """Dotted name of the layer whose input this is."""
    exponent: int
    """log2 of the grid's scale; the result's exponent."""
    zero_point: int
    bits: int

    @property
    def lowest(self) -> int:
        """The smallest result."""
        return -self.zero_point

    @property
    def highest(self) -> int:
        """The largest result."""
        return 2**self.bits - 1 - self.zero_point


@dataclass(frozen=True)
class Convolve(Step):
    """Sum of weight codes times input codes, then per output channel: (sum * mantissa << shift) + bias.

    A weight scale mantissa * 2^k costs an engine without multipliers at this place nothing when the mantissa is 1.
    """

    layer: str
    """Dotted name of the layer."""
    codes: NDArray[np.int8]
    """[O, I / groups, kh, kw]."""
    mantissa: Integers
    """[O], odd, > 0."""
    shift: Integers
    """[O], >= 0: from the channel's own unit to the result's."""
    bias: Integers
    """[O], in units of the result's exponent."""
    exponent: int
    """Of the result."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    """Zeros around the input, rows and columns."""
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class AddConstant(Step):
    """n + constant per channel, both shifted to `exponent`."""

    constant: Integers
    """[C], in units of 2^exponent."""
    exponent: int


@dataclass(frozen=True)
class Add(Step):
    """The sum of two results, both shifted to the finer of their exponents."""


@dataclass(frozen=True)
class Relu(Step):
    """max(n, 0)."""


@dataclass(frozen=True)
class PRelu(Step):
    """n << fraction_bits where n >= 0, else n * slope; the exponent falls by fraction_bits. Leaky ReLUs, too."""

    slope: Integers
    """[C] or [1], in units of 2^-fraction_bits."""
    fraction_bits: int


@dataclass(frozen=True)
class PixelShuffle(Step):
    """[N, C * f^2, H, W] -> [N, C, f * H, f * W], channel-major (ONNX DepthToSpace, mode CRD)."""

    factor: int


@dataclass(frozen=True)
class Enlarge(Step):
    """Every value f times along rows and columns, [N, C, H, W] -> [N, C, f * H, f * W] (ONNX Resize, mode nearest)."""

    factor: int


@dataclass(frozen=True)
class Pad(Step):
    """A border around every channel."""

    border: tuple[int, int, int, int]
    """Its rows above and below, its columns left and right."""
    mode: str
    """What it consists of, as `numpy.pad` names it: zeros (`constant`), `reflect` or `edge`."""


@dataclass(frozen=True)
class Concat(Step):
    """Channels one after the other, shifted to the finest exponent."""


@dataclass(frozen=True)
class Program:
    """A network as integer steps, in the order in which they run."""

    steps: tuple[Step, ...]
    input: str
    """Name of the image, whose integers are its 8-bit values and whose exponent is 0."""
    output: str
    """Name of the step that makes the upscaled image; round it half to even, clamp to 0..255."""
    channels: int = 3
    """Of the image."""
