"""Pixel shuffles that move neighbours together: a convolution's channels, pixel by pixel instead of channel by channel.

    Conv -> QuantizeLinear [-> Clip] -> DepthToSpace(CRD)   becomes   Conv' -> the same -> DepthToSpace(DCR)

Conv' computes the same channels in another order. On CPUs the channels of a pixel lie side by side in memory; PyTorch's
order takes every r*r-th of them to another place, byte by byte, this one all at once. The shuffle of EDSR's 256
channels takes a seventh of the time in OpenVINO, which is 2 % of the network's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer
from odm_deploy.lowering.metadata import change_taps

LEAST = 16
"""Channels behind the shuffle from which on it is worth it; the image's three are not."""


def shuffle_by_pixel(model: ir.Model, editor: GraphEditor, shuffle: ir.Node) -> None:
    """Let a pixel shuffle of a convolution's codes find them in the order it writes them in, and say so in the taps."""
    block = shuffle.attributes["blocksize"].as_int()
    codes = shuffle.inputs[0]
    conv = _convolution_of(shuffle)
    if conv is None or codes is None or shuffle.attributes["mode"].as_string() != "CRD":
        return
    weight = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    array = constant_array(weight.inputs[0]) if weight is not None else None
    if weight is None or array is None or weight.op_type != "DequantizeLinear" or len(array) < LEAST * block**2:
        return
    if only_consumer(weight.outputs[0]) is not conv:
        return
    taps = change_taps(model.metadata_props, lambda tap: tap)
    if any(codes.name in tap.joined for tap in taps):
        return
    order = np.arange(len(array)).reshape(-1, block**2).T.reshape(-1)
    for node, index in ((weight, 0), (weight, 1), (weight, 2), (conv, 2)):
        value = node.inputs[index] if index < len(node.inputs) else None
        old = constant_array(value)
        if value is not None and old is not None and old.size > 1:
            node.replace_input_with(index, editor.constant(f"{value.name}_by_pixel", old[order], old.dtype))
    shuffle.attributes["mode"] = ir.AttrString("mode", "DCR")
    change_taps(model.metadata_props, lambda tap: replace(tap, by_pixel=block) if tap.codes == codes.name else tap)


def _convolution_of(shuffle: ir.Node) -> ir.Node | None:
    """The undivided convolution whose codes the shuffle alone reads; None where there is something else."""
    reader, value = shuffle, shuffle.inputs[0]
    quantized = False
    while value is not None and only_consumer(value) is reader and not value.is_graph_output():
        reader = value.producer()
        if reader is None:
            return None
        if reader.op_type == "Conv":
            group = reader.attributes["group"].as_int() if "group" in reader.attributes else 1
            return reader if quantized and group == 1 else None
        if reader.op_type not in ("QuantizeLinear", "Clip"):
            return None
        quantized = quantized or reader.op_type == "QuantizeLinear"
        value = reader.inputs[0]
    return None
