"""Half precision for what is not quantized.

TensorRT 11 knows precision only from the graph (strong typing), so the casts stand in it. Three things stay float32:

- quantizers: bounds, scales and the division by the scale. Rounding a scale to float16 alone flips 0.4-0.7 % of the
  8-bit codes. `Cast(fp32) -> Q -> DQ -> Cast(fp16) -> Conv` still runs as an int8 convolution;
- arithmetic at the image edges (mean shifts, rounding): float16 has steps of 0.125 near 255, bfloat16 of 1;
- what ONNX knows in no other type: whole operators, such as Celu, or single inputs, such as the scales of Resize.

float16 is the better choice for images: bfloat16 carries three bits less, and its only merit, the range of float32,
is of use to networks whose activations grow beyond 65504.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx import defs

from odm_deploy.graphs.editor import GraphEditor, constant_array

_SUFFIXES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_BFLOAT16_OPSET = 22
_FLOAT = "tensor(float)"
_COMPUTE = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
_QUANTIZER_STEPS = {"Min", "Max", "Sub", "Pad"}
# Gather and Slice: networks of windows extend the image before they scale it, and crop what they scaled back.
_EDGE_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Cast", "Round", "Min", "Max", "Clip", "Gather", "Slice"}


def convert_rest_to_half(model: ir.Model, half_type: ir.DataType = ir.DataType.FLOAT16) -> None:
    """Let everything but quantizers and image-edge arithmetic of a lowered graph compute in half precision, in place.

    Args:
        model: a lowered graph.
        half_type: FLOAT16, or BFLOAT16, which raises the graph's opset to 22, the first whose Conv knows it.
    """
    if half_type == ir.DataType.BFLOAT16:
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], _BFLOAT16_OPSET)
    graph = model.graph
    editor = GraphEditor(graph)
    nodes = list(graph)
    opset = model.graph.opset_imports[""]
    keep = _quantizer_nodes(nodes) | _edge_nodes(nodes, graph)
    keep |= {node for node in nodes if _is_of_floats(node, opset, half_type)}
    half: set[ir.Value] = set()
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in nodes:
        formal = _inputs_of_schema(node, opset)
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, half_type):
                continue
            is_float = node in keep or (index < len(formal) and formal[index].type_str == _FLOAT)
            wanted = ir.DataType.FLOAT if is_float else half_type
            if (half_type if value in half else ir.DataType.FLOAT) != wanted:
                node.replace_input_with(index, _cast(editor, node, value, wanted, casts))
        if node not in keep:
            if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", half_type)
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.dtype = half_type
                    half.add(value)
    _restore_outputs(editor, graph, half)
    editor.drop_unused_constants()


def _is_of_floats(node: ir.Node, opset: int, half_type: ir.DataType) -> bool:
    """Whether ONNX has the operator in float32, but not in half precision, or float32 is its attribute's choice."""
    floats = [value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs]
    if not any(floats):
        return node.op_type != "Cast"
    half = f"tensor({half_type.name.lower()})"
    # Inputs that are float32 in any case say nothing of the others.
    return any(
        is_float and formal.type_str != _FLOAT and half not in formal.types
        for is_float, formal in zip(floats, _inputs_of_schema(node, opset), strict=False)
    )


def _inputs_of_schema(node: ir.Node, opset: int) -> Sequence[defs.OpSchema.FormalParameter]:
    """What ONNX says of each input of a node; nothing of other domains' operators."""
    try:
        return defs.get_schema(node.op_type, opset, node.domain).inputs
    except defs.SchemaError:
        return ()


def _cast(
    editor: GraphEditor,
    node: ir.Node,
    value: ir.Value,
    dtype: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """`value` as `dtype`: constants are converted now, the rest gets one Cast shared by all readers."""
    if (value, dtype) not in casts:
        array, suffix = constant_array(value), _SUFFIXES[dtype]
        if array is not None:
            # What half precision does not reach, such as a bound that changes nothing, stays finite.
            limits = ml_dtypes.finfo(dtype.numpy())
            array = np.where(np.isfinite(array), np.clip(array, float(limits.min), float(limits.max)), array)
            casts[value, dtype] = editor.constant(f"{value.name}.{suffix}", array, dtype.numpy())
        else:
            casts[value, dtype] = editor.node_before(
                node, "Cast", [value], f"{value.name}.{suffix}", {"to": dtype.value}, dtype=dtype
            )
    return casts[value, dtype]


def _restore_outputs(editor: GraphEditor, graph: ir.Graph, half: set[ir.Value]) -> None:
    """Graph outputs keep their type and name, whatever computed them."""
    for index, output in enumerate(graph.outputs):
        if output in half:
            name = output.name
            output.name = f"{name}.half"
            node = ir.node("Cast", [output], attributes={"to": ir.DataType.FLOAT.value})
            value = node.outputs[0]
            value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, output.shape
            graph.append(node)
            graph.outputs[index] = value


def _quantizer_nodes(nodes: list[ir.Node]) -> set[ir.Node]:
    """Q and DQ nodes, and the bounds, shifts and paddings in front of each Q."""
    found: set[ir.Node] = {node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for node in list(found):
        step = node
        while step.op_type == "QuantizeLinear" or step in found:
            value = step.inputs[0]
            producer = value.producer() if value is not None else None
            if (
                producer is None
                or producer.op_type not in _QUANTIZER_STEPS
                or len(list(producer.outputs[0].uses())) > 1
            ):
                break
            found.add(producer)
            step = producer
    return found


def _edge_nodes(nodes: list[ir.Node], graph: ir.Graph) -> set[ir.Node]:
    """Arithmetic before the first and after the last convolution or matrix product."""
    before = _untouched(nodes, lambda node: [value.producer() for value in node.inputs if value is not None])
    after = _untouched(nodes[::-1], lambda node: [use.node for value in node.outputs for use in value.uses()])
    return before | after


def _untouched(ordered: list[ir.Node], neighbours: Callable[[ir.Node], list[ir.Node | None]]) -> set[ir.Node]:
    """Arithmetic nodes that no compute node precedes, following `neighbours`, in an order that respects it."""
    clean: set[ir.Node] = set()
    for node in ordered:
        near = [other for other in neighbours(node) if other is not None]
        if node.op_type in _EDGE_ARITHMETIC and all(other in clean for other in near):
            clean.add(node)
    return clean
