"""Proof that a fixed graph computes what the original does: both run in ONNX Runtime as they are written.

First piece by piece: every quantizer of the fixed graph is given the very values that it gets in the original, and
every layer behind it the very codes, so that a difference shows where it arises. Then whole, where a value that rounds
the other way can move those behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.plain_run import Arrays, PlainRun
from odm_deploy.lowering.fixing.changes import Changes, Moved, Tap
from odm_deploy.lowering.fixing.quantizers import CODE_RANGES
from odm_deploy.lowering.lint.graph import QdqGraph
from odm_deploy.lowering.lint.operands import activation_quantizers

SIZES_PX = ((48, 40), (24, 64))
"""Heights and widths of the images, where the graph leaves them open: multiples of 8, which windows often want."""

VALUES = ((0.0, 1.0), (0.0, 255.0), (-3.0, 3.0))
"""Least and largest values of the images, where they do not go straight into a quantizer."""

BEYOND = 0.25
"""By what part of its range a quantizer that reads an image is given values beyond both ends, in some images.

It is given all of the range: of a few of its codes, a layer's output is small beside the sums that make it, which may
round on the way."""

LARGEST_ERROR = 1e-4
"""Of the largest value of a tensor: float32 sums in another order differ by far less, a wrong bias by far more."""

HALF_ERROR = 4e-3
"""The same for half precision, which has 11 bits."""

LARGEST_FLIP_RATE = 1e-3
"""Share of codes that may round the other way: values between two codes, where a sum changed its last bit."""

CLOSE = 1e-5
"""Of the largest value of a tensor: the last bits of float32 sums."""

_FED = ".given"
NARROW = (TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2)
"""Types of codes that have none in numpy: such tensors are given, and looked at, as int8."""


@dataclass(frozen=True)
class Equality:
    """How a fixed graph compares with the original on random inputs."""

    runs: int
    codes: int
    """Codes compared, each computed from the original's own values."""
    flips: int
    """Those that differ."""
    largest_flip: int
    """By how many steps at most."""
    error: float
    """Largest difference of a tensor between two quantizers, as a part of its largest value."""
    identical: float
    """Share of output values that are equal to the bit when both graphs run whole."""
    close: float
    """Share of those within `CLOSE` of the largest value."""
    output_error: float
    """Largest difference of the outputs then, as a part of their largest value."""

    @property
    def holds(self) -> bool:
        """Whether the two are the same but for the rounding of float32 sums."""
        few = self.flips <= LARGEST_FLIP_RATE * max(self.codes, 1)
        return few and self.largest_flip <= 1 and self.error <= LARGEST_ERROR

    def __str__(self) -> str:
        flips = f"{self.flips} differ, by {self.largest_flip} step" if self.flips else "all equal"
        codes = f"{self.codes} codes compared, {flips}" if self.codes else "no codes to compare are left"
        if self.identical == 1:
            return f"{codes}; outputs equal to the bit"
        return (
            f"{codes}; outputs: {self.identical:.2%} equal to the bit, {self.close:.2%} "
            f"within {CLOSE:g} of the largest value, all within {self.output_error:.1e}"
        )


@np.errstate(invalid="ignore")
def compare(original: ModelProto, flat: ModelProto, fixed: ModelProto, changes: Changes) -> Equality:
    """Run all three on random images of three ranges and two sizes.

    Args:
        original: the graph as its file holds it.
        flat: the same with functions inlined, whose tensors the fixed graph still has by name.
        fixed: the fixed graph.
        changes: where the codes of its quantizers are in `flat` and in `fixed`.

    Raises:
        InputError: ONNX Runtime does not run one of them.
    """
    outputs = [value.name for value in original.graph.output]
    flat_codes = {name for node in flat.graph.node for name in node.output}
    taps = [tap for tap in changes.taps if tap.before in flat_codes or tap.before in changes.moved]
    taps += _untouched(flat, fixed, taps, changes.moved)
    moved = {tap.before: changes.moved[tap.before] for tap in taps if tap.before not in flat_codes}
    cuts = _cuts(flat, fixed)
    forced = _forced(fixed, cuts, taps)
    codes = (moved[tap.before].values if tap.before in moved else tap.before for tap in taps)
    before = PlainRun(flat, [*outputs, *cuts, *codes])
    pieces = PlainRun(forced, [*outputs, *cuts, *(tap.after for tap in taps)])
    # A quantizer without a tap cannot be given its codes: one that rounds the other way moves the few values behind it.
    untapped = len(list(activation_quantizers(QdqGraph(fixed)))) > len(taps)
    share = 1 - LARGEST_FLIP_RATE if untapped else 1.0
    kinds = {tap.after: _dtype(fixed, tap.after) for tap in taps}
    whole = PlainRun(fixed, outputs)
    try:
        reference = PlainRun(original, outputs)
    except InputError:
        # Names used twice, which TensorRT minds too; the flat graph has others.
        reference = PlainRun(flat, outputs)
    compared = flips = largest = same = close = total = runs = 0
    error = output_error = 0.0
    for feeds in _random_feeds(original, _quantized_ranges(flat)):
        runs += 1
        wanted = before(feeds)
        for name, each in moved.items():
            wanted[name] = (np.rint(wanted[each.values].astype(np.float64) / each.step) + each.zero).astype(np.int64)
        given = {name: wanted[name] for name in cuts}
        given |= {tap.after: _padded(wanted[tap.before], tap).astype(kinds[tap.after]) for tap in taps}
        got = pieces({**feeds, **{f"{name}{_FED}": array for name, array in given.items()}})
        # Half precision rounds between operators, or not, as the runtime likes.
        half = any(wanted[name].dtype == np.float16 for name in (*outputs, *cuts))
        unit = HALF_ERROR / LARGEST_ERROR if half else 1.0
        for name in (*outputs, *cuts):
            error = max(error, _difference(wanted[name], got[name], share) / unit)
        for tap in taps:
            steps = np.abs(wanted[tap.before].astype(np.int64) - tap.offset - _inner(got[tap.after], tap.pads))
            compared, flips = compared + steps.size, flips + int(np.count_nonzero(steps))
            largest = max(largest, int(steps.max(initial=0)))
        first, second = reference(feeds), whole(feeds)
        for name in outputs:
            same += int(np.count_nonzero(first[name] == second[name]))
            limit = CLOSE * float(np.abs(first[name].astype(np.float64)).max(initial=0))
            close += int(np.count_nonzero(np.abs(first[name].astype(np.float64) - second[name]) <= limit))
            total += first[name].size
            output_error = max(output_error, _difference(first[name], second[name]))
    shares = same / max(total, 1), close / max(total, 1)
    return Equality(runs, compared, flips, largest, error, *shares, output_error)


def _cuts(flat: ModelProto, fixed: ModelProto) -> list[str]:
    """What quantizers read in the one graph and some node makes in the other."""
    made = {name for node in fixed.graph.node for name in node.output}
    graph = QdqGraph(flat)
    return list(dict.fromkeys(node.input[0] for node in activation_quantizers(graph) if node.input[0] in made))


def _untouched(flat: ModelProto, fixed: ModelProto, taps: list[Tap], moved: Mapping[str, Moved]) -> list[Tap]:
    """Quantizers that are the same in both graphs, apart from their place."""
    made = {name for node in fixed.graph.node for name in node.output} - {tap.before for tap in taps}
    names = (node.output[0] for node in activation_quantizers(QdqGraph(flat)))
    return [Tap(name, name, 0) for name in dict.fromkeys([*names, *moved]) if name in made]


def _forced(fixed: ModelProto, cuts: list[str], taps: list[Tap]) -> ModelProto:
    """The fixed graph with what quantizers read, and what they make, as further inputs."""
    forced = ModelProto()
    forced.CopyFrom(fixed)
    cut = {*cuts, *(tap.after for tap in taps)}
    for node in forced.graph.node:
        for index, name in enumerate(node.input):
            if name in cut:
                node.input[index] = f"{name}{_FED}"
    casts: list[NodeProto] = []
    for name in dict.fromkeys(cut):
        kind, fed = _type(fixed, name), f"{name}{_FED}"
        if kind in NARROW:
            casts.append(helper.make_node("Cast", [fed], [f"{fed}.narrow"], to=kind))
            for node in forced.graph.node:
                node.input[:] = [f"{fed}.narrow" if each == fed else each for each in node.input]
            kind = TensorProto.INT8
        forced.graph.input.append(helper.make_tensor_value_info(fed, kind, None))
    nodes = [*casts, *forced.graph.node]
    del forced.graph.node[:]
    forced.graph.node.extend(nodes)
    return forced


def _type(model: ModelProto, tensor: str) -> int:
    """The ONNX type that is told or was inferred for a tensor; float32 where it is not known."""
    entries = itertools.chain(model.graph.value_info, model.graph.output)
    known = (entry.type.tensor_type.elem_type for entry in entries if entry.name == tensor)
    return next(known, TensorProto.FLOAT) or TensorProto.FLOAT


def _dtype(model: ModelProto, tensor: str) -> np.dtype[Any]:
    """The numpy type in which a tensor is given to `_forced`."""
    kind = _type(model, tensor)
    return np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.INT8 if kind in NARROW else kind))


def _padded(codes: NDArray[Any], tap: Tap) -> NDArray[np.int64]:
    """The codes of the original as the fixed graph has them."""
    shifted, half = codes.astype(np.int64) - tap.offset, len(tap.pads) // 2
    amounts = [(0, 0)] * (codes.ndim - half) + list(zip(tap.pads[:half], tap.pads[half:], strict=True))
    return np.pad(shifted, amounts, constant_values=tap.zero)


def _random_feeds(model: ModelProto, ranges: dict[str, tuple[float, float]]) -> list[Arrays]:
    rng = np.random.default_rng(2026)
    filled = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in filled]
    values = {value.name: _values(ranges.get(value.name)) for value in inputs}
    return [
        {value.name: _random(rng, value.type.tensor_type, size, *values[value.name][index]) for value in inputs}
        for size in SIZES_PX
        for index in range(len(VALUES))
    ]


def _values(quantized: tuple[float, float] | None) -> tuple[tuple[float, float], ...]:
    """Least and largest values of images, where one is quantized on a range and where it is not."""
    low, high = quantized or (0.0, 0.0)
    if not high > low:
        return VALUES
    more = BEYOND * (high - low)
    return (low, high), (low - more, high + more), (low / 2, high / 2)


def _quantized_ranges(flat: ModelProto) -> dict[str, tuple[float, float]]:
    """What the codes of quantizers stand for that read an input of the graph, by the input's name."""
    graph, ranges = QdqGraph(flat), dict[str, tuple[float, float]]()
    inputs = {value.name for value in flat.graph.input}
    for node in activation_quantizers(graph):
        scale, codes = graph.scale(node), CODE_RANGES.get(graph.code_type(node))
        if node.input[0] in inputs and scale is not None and codes is not None:
            zero = graph.zero_point(node)
            ends = np.subtract.outer(np.asarray(codes, np.float64), 0.0 if zero is None else zero.astype(np.float64))
            ranges[node.input[0]] = float((ends * scale).min()), float((ends * scale).max())
    return ranges


def _random(rng: np.random.Generator, kind: Any, size: tuple[int, int], low: float, high: float) -> NDArray[Any]:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    channels_last = len(dims) == 4 and dims[3] in (1, 3) and dims[1] not in (1, 3)
    defaults = [1, *size, 3] if channels_last else [1, 3, *size]
    shape = [dim or (defaults[index] if len(dims) == 4 else 8) for index, dim in enumerate(dims)]
    if dtype.kind in "iu":
        least, most = max(np.iinfo(dtype).min, -128), min(np.iinfo(dtype).max, 255)
        return rng.integers(least, most, shape, endpoint=True).astype(dtype)
    largest = float(np.finfo(dtype).max) / 2
    return rng.uniform(max(low, -largest), min(high, largest), shape).astype(dtype)


def _inner(codes: NDArray[Any], pads: tuple[int, ...]) -> NDArray[np.int64]:
    """Codes without the padding around them."""
    if pads:
        half = len(pads) // 2
        ends = [slice(first, -last or None) for first, last in zip(pads[:half], pads[half:], strict=True)]
        codes = codes[(..., *ends)]
    return codes.astype(np.int64)


def _difference(first: NDArray[Any], second: NDArray[Any], share: float = 1.0) -> float:
    """How far `share` of the values are apart at most, as a part of the largest one; infinite where shapes differ."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    if not np.any(finite):
        return 0.0
    apart, largest = np.quantile(np.abs(a - b)[finite], share), np.abs(a[finite]).max()
    return float(apart / largest if largest else apart)
