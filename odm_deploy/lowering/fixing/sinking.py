"""Moving operations from behind a DQ to before its Q, where they change no code and TensorRT can do them in float.

Rounding to a grid commutes with whatever only moves values or keeps their order: max pooling, ReLU, padding with
values of the tensor or with zero (which is on every grid), nearest-neighbour resizing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odm_deploy.lowering.fixing.changes import Changes, Moved
from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edit import Rewriter, attribute
from odm_deploy.lowering.fixing.quantizers import Pair, is_activation_quantizer, pairs_of
from odm_deploy.lowering.fixing.weights import Weights
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE

_SHAPING = ("DepthToSpace", "Expand", "Flatten", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze")
_MOVING = frozenset((*_SHAPING, "Gather", "Identity", "MaxPool", "Slice", "Split", "Tile"))


def sink_quantizers(editor: Rewriter, constants: Constants, changes: Changes, weights: dict[ir.Node, Weights]) -> None:
    """Move what stands between a DQ and a quantized layer before the Q, where TensorRT would not use codes."""
    for node in list(editor.graph):
        if not _keeps_codes(constants, node) or not _reaches_layer(node, weights):
            continue
        pair = _pair_before(constants, node)
        if pair is None or not (_blocks(node) or not (pair.fits and pair.given.is_uniform)):
            continue
        if not pair.given.is_uniform or not pair.taken.is_uniform or not pair.steps[0] <= 0 <= pair.steps[1]:
            continue
        source = pair.quantize.inputs[0]
        assert source is not None
        outputs = list(node.outputs)
        node.replace_input_with(0, source)
        for output in outputs:
            following = list({id(use.node): use.node for use in output.uses()}.values())
            if not following:
                continue
            name = output.name or node.name or "moved"
            codes = _copy(pair.quantize, output, f"{name}/{QUANTIZE}")
            values = _copy(pair.dequantize, codes.outputs[0], f"{name}/{DEQUANTIZE}")
            for user in following:
                for index, value in enumerate(user.inputs):
                    if value is output:
                        user.replace_input_with(index, values.outputs[0])
            editor.graph.insert_after(node, [codes, values])
            editor.take_over(output, values.outputs[0])
            codes.outputs[0].name = f"{name}.codes"
            changes.moved[f"{name}.codes"] = Moved(name, float(pair.taken.step), pair.taken.zero)
        changes.did(f"{node.op_type} moved from behind a DequantizeLinear to before its QuantizeLinear")


def _copy(node: ir.Node, source: ir.Value, name: str) -> ir.Node:
    """A uniform quantizer's Q or DQ node for another tensor; the type of its results may be an attribute."""
    attributes = {key: each for key, each in node.attributes.items() if key != "axis"}
    return ir.Node("", node.op_type, [source, *node.inputs[1:]], list(attributes.values()), name=name)


def _pair_before(constants: Constants, node: ir.Node) -> Pair | None:
    """The quantizer whose values a node reads."""
    dequantize = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if dequantize is None or dequantize.op_type != DEQUANTIZE:
        return None
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    if quantize is None or not is_activation_quantizer(constants, quantize):
        return None
    pairs = pairs_of(constants, quantize)
    if isinstance(pairs, str):
        return None
    return next((pair for pair in pairs if pair.dequantize is dequantize), None)


def _keeps_codes(constants: Constants, node: ir.Node) -> bool:
    """Whether an operation gives the same result before a quantizer as behind it."""
    if node.op_type in _MOVING or node.op_type == "Relu":
        return True
    if node.op_type == "Pad":
        if attribute(node, "mode", "constant") != "constant":
            return True
        value = node.inputs[2] if len(node.inputs) > 2 else None
        name = value.name if value is not None else None
        return name is None or (constants.is_constant(name) and not np.any(constants.value(name)))
    return node.op_type in ("Resize", "Upsample") and attribute(node, "mode", "nearest") == "nearest"


def _blocks(node: ir.Node) -> bool:
    """Whether a layer behind this operation runs in float although its values are dequantized codes."""
    constant_pad = node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant"
    return constant_pad or node.op_type in ("Relu", "Resize", "Upsample")


def _reaches_layer(node: ir.Node, weights: dict[ir.Node, Weights]) -> bool:
    """Whether a layer with quantized weights, or a product of two activations, reads what a node makes of its input."""
    pending, seen = list(node.outputs), set[int]()
    while pending:
        value = pending.pop()
        for use in value.uses():
            if use.node in weights or use.node.op_type == "MatMul":
                return True
            movable = use.node.op_type in _MOVING or use.node.op_type in ("Relu", "Pad", "Resize", "Upsample")
            if movable and id(use.node) not in seen:
                seen.add(id(use.node))
                pending += use.node.outputs
    return False
