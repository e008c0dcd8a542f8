"""Weights as int8 codes with zero point 0 and a scale an output channel, whatever they were stored as.

A weight is scale * k with an integer k, its code minus its zero point. Where the k of a channel reach beyond int8, as
those of uint8 weights do, they are written as k' + d with one d for the channel: the layer computes with k', and d
times the sum of its inputs, which one more channel of ones computes, is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from odm_deploy.graphs.constants import per_code
from odm_deploy.lowering.fixing.changes import Changes
from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edit import Rewriter, attribute
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE
from odm_deploy.lowering.lint.operands import LAYER_TYPES

_MOVING = frozenset(
    ("Transpose", "Reshape", "Slice", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Split", "Concat")
)


@dataclass(frozen=True)
class Weights:
    """Quantized weights of a layer, legal as they stand: w = scale * codes."""

    codes: NDArray[np.int64]
    scale: NDArray[np.float32]
    """One an output channel, or a single one, shape [C] or [1]."""
    axis: int
    """The axis of output channels."""
    is_stack: bool = False
    """Whether they are the matrices of a MatMul, one for each index of the leading axes."""

    @property
    def sums(self) -> NDArray[np.float64]:
        """The sum of the weights of each output channel, float64 [C]; [..., 1, C] for a stack of matrices."""
        if self.is_stack:
            return self.codes.sum(-2, keepdims=True) * self.scale.astype(np.float64)
        others = tuple(axis for axis in range(self.codes.ndim) if axis != self.axis)
        return self.codes.sum(others) * self.scale.astype(np.float64)


def fix_weights(editor: Rewriter, constants: Constants, changes: Changes) -> dict[ir.Node, Weights]:
    """Rewrite the weights of every layer, and constants behind a DQ; returns the layers with quantized weights."""
    found: dict[ir.Node, Weights] = {}
    for layer in [node for node in editor.graph if node.op_type in LAYER_TYPES]:
        _fix_layer(editor, constants, changes, layer, found)
    _fold_other_constants(editor, constants, changes)
    return found


def _fix_layer(
    editor: Rewriter, constants: Constants, changes: Changes, layer: ir.Node, found: dict[ir.Node, Weights]
) -> None:
    weight = layer.inputs[1]
    if weight is None or weight.name is None or not constants.is_constant(weight.name):
        return
    leaves, path = _leaves(weight)
    if not leaves:
        return
    if any(node.op_type not in _MOVING for node in path):
        return  # the builder folds some of this; what it does not, lint names
    split = {leaf.outputs[0].name or "": _split(constants, leaf) for leaf in leaves}
    steps = {name: k.astype(np.float32) for name, (k, _) in split.items()}
    codes = constants.moved(weight.name, steps).astype(np.int64)
    scales = constants.moved(weight.name, {name: s for name, (_, s) in split.items()})
    if not np.all(np.isfinite(scales)):
        changes.leave(f"{layer.name}: a weight scale is infinite or not a number")
        return
    if codes.ndim < 2:
        value = constants.value(weight.name)
        layer.replace_input_with(1, editor.constant(f"{layer.name}.weight", value, value.dtype))
        changes.leave(f"{layer.name} runs in float: its weights are a vector, without output channels")
        return
    codes, scales = _positive(codes, scales)
    is_stack = layer.op_type == "MatMul" and codes.ndim > 2
    axis = _output_axis(layer, codes.ndim)
    others = tuple(index for index in range(codes.ndim) if index != axis)
    by_channel = scales.max(others)
    half = constants.value(weight.name).dtype != np.float32
    uniform = bool(np.all(scales.min(others) == by_channel))
    legal = not path and len(leaves) == 1 and uniform and _is_legal(constants, leaves[0], axis)
    low, high = codes.min(others), codes.max(others)
    wide = bool(np.any((low < -128) | (high > 127)))
    if legal and not wide:
        found[layer] = Weights(codes, by_channel, axis, is_stack)
        return
    if half or not uniform or np.any(high - low > 255) or (wide and not _can_add_sums(layer, codes)):
        why = "half-precision scales" if half else "scales within a channel" if not uniform else "codes beyond 8 bits"
        value = constants.value(weight.name)
        layer.replace_input_with(1, editor.constant(f"{layer.name}.weight", value, value.dtype))
        changes.leave(f"{layer.name} runs in float: its weights have {why}")
        return
    center = np.where(high > 127, high - 127, np.where(low < -128, low + 128, 0))
    codes = codes - np.expand_dims(center, others)
    scale = by_channel[:1] if np.all(by_channel == by_channel[0]) else by_channel
    _write(editor, layer, codes, scale, axis)
    changes.did("weights stored as int8 codes with zero point 0, right before their DequantizeLinear")
    if np.any(center):
        found |= _add_sums(editor, layer, (center * by_channel.astype(np.float64)).astype(np.float32), codes)
        changes.did("weights of more than 127 steps brought into int8, the rest times the sum of the inputs added")
    found[layer] = Weights(codes, scale, axis, is_stack)


def _leaves(weight: ir.Value) -> tuple[list[ir.Node], list[ir.Node]]:
    """The DQ nodes a constant comes from, and the nodes between."""
    leaves: list[ir.Node] = []
    path: list[ir.Node] = []
    pending, seen = [weight], set[int]()
    while pending:
        node = pending.pop().producer()
        if node is None or id(node) in seen or node.op_type == "Constant":
            continue
        seen.add(id(node))
        if node.op_type == DEQUANTIZE:
            leaves.append(node)
        else:
            path.append(node)
            pending += [value for value in node.inputs if value is not None]
    return leaves, path


def _split(constants: Constants, leaf: ir.Node) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes minus zero points, and a scale for each of them."""
    names = [value.name if value is not None else None for value in leaf.inputs]
    assert names[0] is not None and names[1] is not None
    codes = constants.codes(names[0])
    scale = constants.value(names[1]).astype(np.float32)
    zero = constants.codes(names[2]) if len(names) > 2 and names[2] else np.zeros_like(scale, np.int64)
    axis, block = attribute(leaf, "axis", 1), attribute(leaf, "block_size", 0)

    def spread(array: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(per_code(array, codes.shape, axis, block), codes.shape)

    return codes - spread(zero), np.ascontiguousarray(spread(scale), np.float32)


def _positive(codes: NDArray[np.int64], scales: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The same products with scales above zero."""
    codes = np.where(scales == 0, 0, np.where(scales < 0, -codes, codes))
    return codes, np.where(scales == 0, np.float32(1), np.abs(scales))


def _output_axis(layer: ir.Node, rank: int) -> int:
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1
    return rank - 2 if attribute(layer, "transB", 0) else rank - 1


def _is_legal(constants: Constants, leaf: ir.Node, axis: int) -> bool:
    """Whether TensorRT takes these codes as they stand."""
    names = [value.name if value is not None else None for value in leaf.inputs]
    assert names[0] is not None and names[1] is not None
    producer = leaf.inputs[0].producer() if leaf.inputs[0] is not None else None
    quantized_here = producer is not None and producer.op_type == QUANTIZE
    scale = constants.value(names[1])
    rank = constants.codes(names[0]).ndim
    per_axis = scale.size == 1 or (scale.ndim == 1 and attribute(leaf, "axis", 1) % rank == axis)
    zero = constants.codes(names[2]) if len(names) > 2 and names[2] else np.zeros(1, np.int64)
    kind = constants.type_of(names[2] if len(names) > 2 and names[2] else names[0])
    stored = constants.is_stored(names[0]) or quantized_here
    return bool(stored and kind == TensorProto.INT8 and per_axis and not np.any(zero) and np.all(scale > 0))


def _can_add_sums(layer: ir.Node, codes: NDArray[np.int64]) -> bool:
    if layer.op_type == "Conv":
        return attribute(layer, "group", 1) in (1, codes.shape[0])
    plain = attribute(layer, "alpha", 1.0) == 1.0 and not attribute(layer, "transA", 0)
    return layer.op_type == "MatMul" or (layer.op_type == "Gemm" and plain)


def _write(editor: Rewriter, layer: ir.Node, codes: NDArray[np.int64], scale: NDArray[np.float32], axis: int) -> None:
    shape = scale.shape if scale.size > 1 else ()
    stored = [
        editor.constant(f"{layer.name}.codes_w", codes, np.int8),
        editor.constant(f"{layer.name}.scale_w", scale.reshape(shape), np.float32),
        editor.constant(f"{layer.name}.zero_point_w", np.zeros(shape), np.int8),
    ]
    attributes = {"axis": axis} if shape else {}
    layer.replace_input_with(1, editor.before(layer, DEQUANTIZE, stored, f"{layer.name}.weight", attributes))


def _add_sums(
    editor: Rewriter, layer: ir.Node, factor: NDArray[np.float32], codes: NDArray[np.int64]
) -> dict[ir.Node, Weights]:
    """Add `factor`, one an output channel, times the sum of what each output is computed from; the layer that sums."""
    name, x = layer.name, layer.inputs[0]
    summing: dict[ir.Node, Weights] = {}
    if layer.op_type == "Conv":
        ones = np.ones((attribute(layer, "group", 1), *codes.shape[1:]), np.int64)
        stored = editor.constant(f"{name}.ones", ones, np.int8), editor.floats(f"{name}.one", 1.0)
        zero = editor.constant(f"{name}.zero", 0, np.int8)
        weight = editor.before(layer, DEQUANTIZE, [*stored, zero], f"{name}.sum_w")
        kept = {key: value.value for key, value in layer.attributes.items()}
        sums = editor.before(layer, "Conv", [x, weight], f"{name}.sum", kept)
        factor = factor.reshape(1, -1, *[1] * (codes.ndim - 2))
        node = sums.producer()
        assert node is not None
        summing[node] = Weights(ones, np.ones(1, np.float32), 0)
    else:
        axes = editor.constant(f"{name}.last_axis", [-1], np.int64)
        sums = editor.before(layer, "ReduceSum", [x, axes], f"{name}.sum", {"keepdims": 1})
    term = editor.before(layer, "Mul", [sums, editor.floats(f"{name}.sum_factor", factor)], f"{name}.sum_scaled")
    editor.behind(layer.outputs[0], "Add", term)
    return summing


def _fold_other_constants(editor: Rewriter, constants: Constants, changes: Changes) -> None:
    """Biases, slopes and factors as the floats their DQ makes of them."""
    factors = [value for node in editor.graph if node.op_type in LAYER_TYPES for value in node.inputs[:2]]
    weights = {id(leaf) for value in factors if value is not None for leaf in _leaves(value)[0]}
    for node in list(editor.graph):
        output = node.outputs[0]
        if node.op_type != DEQUANTIZE or not constants.is_constant(output.name) or not output.uses():
            continue
        if id(node) in weights:
            continue
        assert output.name is not None
        value = constants.value(output.name)
        editor.replace(output, editor.constant(f"{output.name}.value", value, value.dtype))
        changes.did("biases and other constants stored as the floats that their DequantizeLinear made")
