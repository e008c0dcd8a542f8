"""Convolutions of fewer output channels than a vector has lanes: padded with zeros, which are cut off again.

    Conv -> QuantizeLinear   becomes   Conv' -> QuantizeLinear -> Slice(channels)

The last convolution of a network writes the image's few channels, for which ONNX Runtime takes a slow path: 256 to 12
channels took two and a half times as long as 256 to 16 (EDSR as a whole 774 ms of processor time instead of 607, on
one thread). OpenVINO takes the same time for both. What is cut off is bytes; the codes are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer

LANES = 16
"""Channels that kernels compute at once."""


def pad_channels(editor: GraphEditor, conv: ir.Node) -> None:
    """Pad a quantized convolution whose output is quantized at once; any other is left as it is."""
    weight = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    quantize = only_consumer(conv.outputs[0])
    codes = constant_array(weight.inputs[0]) if weight is not None else None
    if weight is None or codes is None or weight.op_type != "DequantizeLinear" or len(codes) >= LANES:
        return
    if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.outputs[0].is_graph_output():
        return
    source = conv.inputs[0].producer() if conv.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear" or only_consumer(weight.outputs[0]) is not conv:
        return
    if "group" in conv.attributes and conv.attributes["group"].as_int() != 1:
        return
    reader = only_consumer(quantize.outputs[0])
    if reader is None:
        return
    count = len(codes)
    for node, index in ((weight, 0), (weight, 1), (weight, 2), (conv, 2)):
        value = node.inputs[index] if index < len(node.inputs) else None
        old = constant_array(value)
        if value is not None and old is not None and old.ndim > 0:
            # A scale of zero would be none.
            filled = np.full((LANES - count, *old.shape[1:]), 1 if (node, index) == (weight, 1) else 0, old.dtype)
            node.replace_input_with(
                index, editor.constant(f"{value.name}_padded", np.concatenate([old, filled]), old.dtype)
            )
    written = quantize.outputs[0]
    name = written.name or ""
    layer = name.removesuffix(".saturated_x")
    bounds = [editor.constant(f"{layer}.{end}", [at], np.int64) for end, at in (("cut_first", 0), ("cut_last", count))]
    axes = editor.constant(f"{layer}.cut_axis", [1], np.int64)
    uses = list(written.uses())
    written.name = f"{name}.padded"
    conv.outputs[0].shape = written.shape = None
    cut = editor.node_before(reader, "Slice", [written, *bounds, axes], f"{name}.cut", dtype=ir.DataType.UINT8)
    cut.name = name
    for use in uses:
        use.node.replace_input_with(use.idx, cut)
