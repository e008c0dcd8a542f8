"""uint8 images in and out, inside the graph: a quarter of the bytes over the bus, no host-side float conversion.

The output is rounded half to even, clamped to 0..255 and only then cast: TensorRT's own float -> uint8 cast truncates.
The casts and clamps fold into the first and last kernels. Where the last quantizer's codes are the pixels, as profile
`integer` has them on CPUs, they are the output as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odm_deploy.bundle.image_format import BGR_SUFFIX, ChannelOrder, Layout
from odm_deploy.graphs.editor import GraphEditor, constant_array
from odm_deploy.lowering.metadata import rename_source

_ENDS = (("black", 0.0), ("white", 255.0))


def add_uint8_io(model: ir.Model, layout: Layout = "nchw", order: ChannelOrder = "rgb") -> None:
    """Turn the float32 NCHW input and output (0..255) of a lowered graph into uint8, in place.

    Args:
        model: a graph with one input and one output.
        layout: `nchw` for [N, 3, H, W], `nhwc` for [N, H, W, 3] images as decoders produce them.
        order: `bgr` for images as OpenCV has them, in and out.
    """
    graph, editor = model.graph, GraphEditor(model.graph)
    name = graph.inputs[0].name
    decoded = _uint8_input(graph, editor, layout, order)
    _uint8_output(graph, layout, order)
    assert name is not None
    assert decoded.name is not None
    rename_source(model.metadata_props, name, decoded.name)


def _uint8_input(graph: ir.Graph, editor: GraphEditor, layout: Layout, order: ChannelOrder) -> ir.Value:
    """Put the decoding in front of everything that reads the image; returns the float image."""
    old = graph.inputs[0]
    assert old.shape is not None
    uses = [(use.node, use.idx) for use in old.uses()]
    first = min((node for node, _ in uses), key=list(graph).index)
    image = ir.Value(
        name=_edge_name(old, order), type=ir.TensorType(ir.DataType.UINT8), shape=_ordered(old.shape, layout)
    )
    old.name = None
    graph.inputs[0] = image
    # Cast first: TensorRT transposes no uint8.
    x = editor.node_before(first, "Cast", [image], "input.float", {"to": ir.DataType.FLOAT.value})
    if layout == "nhwc":
        x = editor.node_before(first, "Transpose", [x], "input.nchw", {"perm": [0, 3, 1, 2]})
    if order == "bgr":
        reversal = editor.constant("input.reversal", [2, 1, 0], np.int64)
        x = editor.node_before(first, "Gather", [x, reversal], "input.rgb", {"axis": 1})
    for node, index in uses:
        node.replace_input_with(index, x)
    return x


def _uint8_output(graph: ir.Graph, layout: Layout, order: ChannelOrder) -> None:
    old = graph.outputs[0]
    assert old.shape is not None
    name, shape = _edge_name(old, order), old.shape
    old.name = f"{old.name}.float"
    editor = GraphEditor(graph)
    pixels = _pixel_codes(old)
    x = old if pixels is None else pixels
    kind = ir.DataType.FLOAT if pixels is None else ir.DataType.UINT8
    steps: list[tuple[str, list[ir.Value], dict[str, object], ir.DataType]] = []
    if pixels is None:
        black, white = (editor.constant(f"output.{end}", value, np.float32) for end, value in _ENDS)
        steps += [("Round", [], {}, kind), ("Max", [black], {}, kind), ("Min", [white], {}, kind)]
    if order == "bgr":
        reversal = editor.constant("output.reversal", [2, 1, 0], np.int64)
        steps.append(("Gather", [reversal], {"axis": 1}, kind))
    if layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}, kind))
    if pixels is None:
        steps.append(("Cast", [], {"to": ir.DataType.UINT8.value}, ir.DataType.UINT8))
    elif not steps:
        # Codes keep their name, by which taps know them.
        steps.append(("Identity", [], {}, kind))
    for op, operands, attributes, dtype in steps:
        node = ir.node(op, [x, *operands], attributes=attributes)  # type: ignore[arg-type]
        x = node.outputs[0]
        x.name, x.dtype, node.name = f"{name}.{op.lower()}", dtype, f"{name}/{op}"
        graph.append(node)
    x.name, x.shape = name, _ordered(shape, layout)
    graph.outputs[0] = x
    if pixels is not None:
        dequantize = old.producer()
        assert dequantize is not None
        graph.remove(dequantize, safe=True)
        editor.drop_unused_constants()


def _pixel_codes(image: ir.Value) -> ir.Value | None:
    """The uint8 codes of an image that are its pixels: dequantized by 1 from 0. None for any other image."""
    node = image.producer()
    if node is None or node.op_type != "DequantizeLinear" or image.uses():
        return None
    scale, zero = (constant_array(value) for value in node.inputs[1:])
    if scale is None or zero is None or zero.dtype != np.uint8 or scale.size != 1 or float(scale) != 1.0 or zero.any():
        return None
    return node.inputs[0]


def _edge_name(value: ir.Value, order: ChannelOrder) -> str:
    return f"{value.name}{BGR_SUFFIX if order == 'bgr' else ''}"


def _ordered(shape: ir.Shape, layout: Layout) -> ir.Shape:
    n, c, h, w = shape
    return ir.Shape([n, c, h, w] if layout == "nchw" else [n, h, w, c])
