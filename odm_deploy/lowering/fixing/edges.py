"""Codes that enter or leave a graph: a DQ of an integer input, a Q whose codes are an output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from odm_deploy.lowering.fixing.changes import Changes
from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edit import Rewriter
from odm_deploy.lowering.fixing.quantizers import is_activation_quantizer, parameters
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE


def fix_edges(editor: Rewriter, constants: Constants, changes: Changes) -> None:
    """Compute with casts what TensorRT does not read as codes; quantizers inside are left to the other passes."""
    inputs = {id(value) for value in editor.graph.inputs}
    for node in list(editor.graph):
        if node.op_type == DEQUANTIZE and id(node.inputs[0]) in inputs:
            _read(editor, constants, changes, node)
        elif is_activation_quantizer(constants, node) and node.outputs[0].is_graph_output():
            _write(editor, constants, changes, node)


def _read(editor: Rewriter, constants: Constants, changes: Changes, node: ir.Node) -> None:
    source, name = node.inputs[0], node.outputs[0].name
    assert source is not None
    taken = parameters(constants, node)
    if source.dtype == ir.DataType.INT8 and (isinstance(taken, str) or not np.any(taken.zero_point)):
        return
    if isinstance(taken, str) or not taken.is_uniform or taken.scale.dtype != np.float32:
        changes.leave(f"{node.name}: {taken if isinstance(taken, str) else 'no single float32 scale'}")
        return
    x = editor.before(node, "Cast", [source], f"{name}.cast", {"to": int(TensorProto.FLOAT)})
    zero = taken.zero if len(node.inputs) > 2 else 0
    if zero:
        x = editor.before(node, "Sub", [x, editor.floats(f"{name}.zero", zero)], f"{name}.steps")
    x = editor.before(node, "Mul", [x, editor.floats(f"{name}.step", taken.step)], f"{name}.real")
    # Quantized again, which changes nothing, for the layers that read it as int8.
    codes = editor.before(node, QUANTIZE, [x, *node.inputs[1:]], f"{name}.codes")
    editor.replace(node.outputs[0], editor.before(node, DEQUANTIZE, [codes, *node.inputs[1:]], f"{name}.values"))
    changes.did("integer inputs cast to float and quantized in the graph")


def _write(editor: Rewriter, constants: Constants, changes: Changes, node: ir.Node) -> None:
    codes, source = node.outputs[0], node.inputs[0]
    assert source is not None
    given = parameters(constants, node)
    if isinstance(given, str) or not given.is_uniform or given.scale.dtype != np.float32:
        changes.leave(f"{node.name}: {given if isinstance(given, str) else 'no single float32 scale'}")
        return
    if given.kind != TensorProto.UINT8:
        if given.kind != TensorProto.INT8 or given.zero:
            changes.leave(f"{node.name}: an output of such codes")
        return
    name, x = codes.name, source
    for op, operand in (
        ("Div", given.step),
        ("Round", None),
        ("Add", given.zero or ()),
        ("Max", 0.0),
        ("Min", 255.0),
    ):
        if isinstance(operand, tuple):
            continue
        operands = [] if operand is None else [editor.floats(f"{name}.{op.lower()}", operand)]
        x = editor.before(node, op, [x, *operands], f"{name}.{op.lower()}_result")
    image = editor.before(node, "Cast", [x], f"{name}.cast", {"to": int(TensorProto.UINT8)})
    # Only the output: who reads the codes inside keeps the quantizer.
    for index, output in enumerate(editor.graph.outputs):
        if output is codes:
            codes.name, image.name = f"{name}.inside", name
            image.type, image.shape = codes.type, codes.shape
            editor.graph.outputs[index] = image
    changes.did("uint8 outputs computed with a Cast")
