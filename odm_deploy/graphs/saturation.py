"""Products that saturate: on x86 CPUs without VNNI, integer kernels add pairs of 8-bit products in 16 bits.

`vpmaddubsw` multiplies unsigned codes of a signal by signed codes of weights and adds neighbours; what leaves
-32768..32767 becomes its end. With codes up to 255 there is room for two weights that are 128 together. Which of a
layer's weights are neighbours is up to the kernel, so the two largest of one sign in an output channel count here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from odm_deploy.graphs.index import GraphIndex, attribute

_INT16 = np.iinfo(np.int16)
_UINT8_MAX = 255

_INTEGER_PRODUCTS = {"ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3}
"""Operators on codes -> which input is the weights."""
_MOVES = frozenset(
    {"Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose result is made of what their first input holds."""


def saturating_products(graph: GraphProto, *, only_weights: bool) -> list[str]:
    """Names of a QDQ graph's convolutions and matrix products that saturate for some images, or may: doubt counts.

    Args:
        graph: the main graph; bodies of If and Loop are not entered.
        only_weights: leave out products of two signals (attention), and take signed codes of a signal for unsigned
            ones, which ONNX Runtime makes of them. OpenVINO does, too, but halves the weights for it: they all count.
    """
    index = GraphIndex(graph)
    return [node.name or node.output[0] for node in graph.node if _saturates(index, node, only_weights=only_weights)]


def dequantizer_behind(index: GraphIndex, name: str) -> NodeProto | None:
    """The DequantizeLinear that a tensor's values come from."""
    node = index.producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = index.producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _saturates(index: GraphIndex, node: NodeProto, *, only_weights: bool) -> bool:
    if node.op_type in _INTEGER_PRODUCTS:
        codes = index.value(node.input[_INTEGER_PRODUCTS[node.op_type]])
        # Unsigned weights take kernels of their own, with wider sums.
        axis = 0 if node.op_type.endswith(("ConvInteger", "QLinearConv")) else -1
        return codes is None or (codes.dtype == np.int8 and _overflows(codes, axis, _UINT8_MAX))
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    operands = [dequantizer_behind(index, name) for name in node.input[:2]]
    stored = [operand and _stored_codes(index, operand) for operand in operands]
    for place, codes in enumerate(stored):
        if codes is not None:
            signal = operands[1 - place]
            if signal is not None and _is_signed(index, signal) and not only_weights:
                return True
            largest = _UINT8_MAX if signal is None else _largest_code(index, signal)
            return _overflows(codes, _channel_axis(node, place), largest)
    if None in operands or only_weights:
        return False
    first, second = (_largest_code(index, operand) for operand in operands if operand is not None)
    return 2 * first * second > _INT16.max


def _stored_codes(index: GraphIndex, dequantizer: NodeProto) -> NDArray[np.int16] | None:
    """Codes of weights less their zero point; None for those of a signal."""
    stored = index.value(dequantizer.input[0])
    if stored is None:
        return None
    codes = stored.astype(np.int16)
    zero = index.value(dequantizer.input[2]) if len(dequantizer.input) > 2 else None
    if zero is None or not zero.any():
        return codes
    shape = [1] * codes.ndim
    if zero.size > 1:
        shape[attribute(dequantizer, "axis", 1)] = -1
    return codes - zero.astype(np.int16).reshape(shape)


def _is_signed(index: GraphIndex, dequantizer: NodeProto) -> bool:
    """Whether a signal's codes are int8."""
    zero = index.value(dequantizer.input[2]) if len(dequantizer.input) > 2 else None
    return zero is not None and zero.dtype == np.int8


def _largest_code(index: GraphIndex, dequantizer: NodeProto) -> int:
    """Of a signal in unsigned codes: what bounds them, where that is plain to see."""
    node = index.producers.get(dequantizer.input[0])
    while node is not None and node.op_type in _MOVES - {"Concat"}:
        node = index.producers.get(node.input[0])
    bound = index.value(node.input[2]) if node is not None and node.op_type == "Clip" and len(node.input) > 2 else None
    return int(bound.item()) if bound is not None and bound.dtype == np.uint8 and bound.size == 1 else _UINT8_MAX


def _channel_axis(node: NodeProto, place: int) -> int:
    """Which axis of the weights is output channels."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    last = place == 1
    if node.op_type == "Gemm" and attribute(node, "transB" if last else "transA", 0):
        last = not last
    return -1 if last else -2


def _overflows(codes: NDArray[np.int16] | NDArray[np.int8], axis: int, largest: int) -> bool:
    """Whether two neighbours in one output channel may be too large together, times a code of `largest`."""
    highest, lowest = _INT16.max // largest, _INT16.min // -largest
    rows = codes.astype(np.int16, copy=False)
    rows = np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1) if rows.ndim > 1 else rows.reshape(1, -1)
    if 2 * rows.max(initial=0) <= highest and -2 * rows.min(initial=0) <= lowest:
        return False
    # Next to an only weight lies padding.
    rows = np.pad(rows, ((0, 0), (1, 1)))
    return bool(
        np.partition(rows, -2, axis=1)[:, -2:].clip(min=0).sum(axis=1).max() > highest
        or -np.partition(rows, 1, axis=1)[:, :2].clip(max=0).sum(axis=1).min() > lowest
    )
