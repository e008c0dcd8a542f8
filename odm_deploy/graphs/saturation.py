"""Products that saturate: on x86 CPUs without VNNI, integer kernels add pairs of 8-bit products in 16 bits.

`vpmaddubsw` multiplies unsigned codes of a signal by signed codes of weights and adds neighbours; what leaves
-32768..32767 becomes its end. With codes up to 255 there is room for two weights that are 128 together. Which of a
layer's weights are neighbours is up to the kernel, so the two largest of one sign in an output channel count here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from odm_deploy.graphs.constants import ConstantIndex, per_code
from odm_deploy.graphs.index import GraphIndex, attribute

_INT16 = np.iinfo(np.int16)
_UINT8_MAX = 255

_INTEGER_PRODUCTS = dict.fromkeys(("QGemm", "QLinearConv", "QLinearMatMul"), 3) | dict.fromkeys(
    ("ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention"), 1
)
"""Operators on codes -> which input is the weights."""
_SIGNALS_ZERO = dict.fromkeys(_INTEGER_PRODUCTS, 2) | {"MatMulIntegerToFloat": 4, "QAttention": 6}
"""The same operators -> which input is the zero point of the other codes, and tells their type."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_MOVES = frozenset(
    {"Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose result is made of what their first input holds."""
MAX_WEIGHTS = 2**24
"""Of a layer whose weights the graph computes; they are not computed here where there are more."""
_NARROW = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
"""Types of codes, as numpy calls them, that integer kernels multiply."""


def saturating_products(graph: GraphProto, *, only_weights: bool) -> list[str]:
    """Names of a QDQ graph's convolutions and matrix products that saturate for some images, or may: doubt counts.

    Args:
        graph: the main graph; bodies of If and Loop are not entered.
        only_weights: as ONNX Runtime multiplies, which adds products of two signals (attention) in 32 bits, makes
            signed codes of a signal unsigned, multiplies int8 weights as they are stored, whose zero point comes
            later, and has no integer Einsum. OpenVINO makes signals unsigned, too, but halves the weights for it: they
            all count. It takes zero points off first.
    """
    index = ConstantIndex(graph, max_size=MAX_WEIGHTS)
    return [node.name or node.output[0] for node in graph.node if _saturates(index, node, only_weights=only_weights)]


def dequantizer_behind(index: GraphIndex, name: str) -> NodeProto | None:
    """The DequantizeLinear that a tensor's values come from."""
    node = index.producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = index.producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def axis_and_block(dequantizer: NodeProto) -> tuple[int, int]:
    """Which axis of the codes a DequantizeLinear has scales for, and how many codes share one; 0 where no blocks do."""
    return attribute(dequantizer, "axis", 1), attribute(dequantizer, "block_size", 0)


def _saturates(index: ConstantIndex, node: NodeProto, *, only_weights: bool) -> bool:
    if node.op_type in _INTEGER_PRODUCTS:
        # ONNX Runtime multiplies signed codes of a signal rightly, and has no kernels for them with unsigned weights.
        if only_weights and _type_of(index, node.input, _SIGNALS_ZERO[node.op_type]) == np.int8:
            return False
        codes = index.value(node.input[_INTEGER_PRODUCTS[node.op_type]])
        # Unsigned weights take kernels of their own, with wider sums.
        return codes is None or (codes.dtype == np.int8 and _overflows(codes, _axis_in_codes(node), _UINT8_MAX))
    if node.op_type not in _PRODUCTS or (only_weights and node.op_type == "Einsum"):
        return False
    operands = [dequantizer_behind(index, name) for name in node.input[:2]]
    for place, operand in enumerate(operands):
        if operand is not None and operand.input[0] in index.constants:
            signal = operands[1 - place] if len(operands) > 1 else None
            if signal is not None and _type_of(index, signal.input, 2) == np.int8 and not only_weights:
                return True
            codes = _multiplied_codes(index, operand, as_stored=only_weights)
            largest = _UINT8_MAX if signal is None else _largest_code(index, signal)
            moved = index.producers[node.input[place]] is not operand
            return codes is None or _overflows(codes, None if moved else _channel_axis(node, place), largest)
    if None in operands or only_weights:
        return False
    first, second = (_largest_code(index, operand) for operand in operands if operand is not None)
    return 2 * first * second > _INT16.max


def _multiplied_codes(index: GraphIndex, dequantizer: NodeProto, *, as_stored: bool) -> NDArray[np.int16] | None:
    """Codes of weights that a kernel multiplies, without zero point unless `as_stored`; None where nobody knows."""
    codes = index.value(dequantizer.input[0])
    if codes is None:
        return None
    # What is stored unsigned takes kernels of its own, with wider sums.
    if codes.dtype.name not in _NARROW or (as_stored and codes.dtype != np.int8):
        return np.zeros(0, np.int16)
    plain = codes.astype(np.int16)
    if as_stored or len(dequantizer.input) < 3 or not dequantizer.input[2]:
        return plain
    zero = index.value(dequantizer.input[2])
    try:
        return (
            None if zero is None else plain - per_code(zero.astype(np.int16), codes.shape, *axis_and_block(dequantizer))
        )
    except ValueError:  # runtimes refuse such a graph by themselves
        return None


def _type_of(index: GraphIndex, inputs: Sequence[str], zero: int) -> np.dtype[Any] | None:
    """The type of a signal's codes, which that of their zero point is; None where that is not known."""
    value = index.value(inputs[zero]) if len(inputs) > zero else None
    return None if value is None else value.dtype


def _largest_code(index: GraphIndex, dequantizer: NodeProto) -> int:
    """Of a signal in unsigned codes: what bounds them, where that is plain to see."""
    node = index.producers.get(dequantizer.input[0])
    while node is not None and node.op_type in _MOVES - {"Concat"}:
        node = index.producers.get(node.input[0])
    bound = index.value(node.input[2]) if node is not None and node.op_type == "Clip" and len(node.input) > 2 else None
    return int(bound.item()) if bound is not None and bound.dtype == np.uint8 and bound.size == 1 else _UINT8_MAX


def _axis_in_codes(node: NodeProto) -> int | None:
    """Which axis of the weights of an operator on codes is output channels."""
    if node.op_type.endswith(("ConvInteger", "QLinearConv")):
        return 0
    return None if node.op_type == "QGemm" else -1


def _channel_axis(node: NodeProto, place: int) -> int | None:
    """Which axis of the weights is output channels; None where that takes reading."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    if node.op_type == "Einsum":
        return None
    last = place == 1
    if node.op_type == "Gemm" and attribute(node, "transB" if last else "transA", 0):
        last = not last
    return -1 if last else -2


def _overflows(codes: NDArray[np.int16] | NDArray[np.int8], axis: int | None, largest: int) -> bool:
    """Whether two neighbours in one output channel may be too large together, times a code of `largest`.

    Without an `axis`, any two may be neighbours.
    """
    highest, lowest = _INT16.max // largest, _INT16.min // -largest
    rows = codes.astype(np.int16, copy=False)
    if axis is not None and rows.ndim > 1 and rows.size:
        rows = np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    else:
        rows = rows.reshape(1, -1)
    if 2 * rows.max(initial=0) <= highest and -2 * rows.min(initial=0) <= lowest:
        return False
    # Next to an only weight lies padding.
    rows = np.pad(rows, ((0, 0), (1, 1)))
    return bool(
        np.partition(rows, -2, axis=1)[:, -2:].clip(min=0).sum(axis=1).max() > highest
        or -np.partition(rows, 1, axis=1)[:, :2].clip(max=0).sum(axis=1).min() > lowest
    )
