"""Exact rewrites of a marked graph, so that a quantizer stands right behind the convolution that feeds it.

Quantizing value by value commutes with whatever only moves values, and twice on one grid is once:

    Conv -> DepthToSpace -> FakeQuantize     becomes   Conv -> FakeQuantize -> DepthToSpace    (bytes are shuffled)
    FakeQuantize -> [Relu ->] FakeQuantize   becomes   FakeQuantize                            (one grid, from zero on)
    FakeQuantize -> Relu                     becomes   FakeQuantize with codes from that of zero on
    FakeQuantize, ... -> Concat -> the same  becomes   FakeQuantize, ... -> Concat             (bytes are joined)
    DepthToSpace(r) -> Conv(few channels)    becomes   Conv' -> DepthToSpace(r)
    Conv -> Mul(constant) -> FakeQuantize    becomes   Conv' -> FakeQuantize                   (its scales have it)

The last: a k x k convolution behind a shuffle by r is one of r*r times the channels before it, each of whose taps is
one of the old ones or zero. Kernels compute 16 output channels at once (on GPUs 32), so that up to 16 of them cost what
the few did, and the largest tensor of the network is neither written nor shuffled nor padded. Sums have the same terms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer
from odm_deploy.grid import Grid
from odm_deploy.lowering import markers
from odm_deploy.lowering.scattering import scattered

VECTOR = 16
"""Output channels that a kernel computes at once (AVX-512, VNNI): fewer take as long."""
GPU_VECTOR = 32
"""The same of TensorRT's int8 kernels, whose tensors have 32 channels side by side."""


def prepare(model: ir.Model) -> None:
    """Move quantizers, merge those in a row, and move narrow convolutions before pixel shuffles; in place."""
    graph, editor = model.graph, GraphEditor(model.graph)
    for node in list(graph):
        if node.op_type == "DepthToSpace":
            _quantize_before(graph, node)
        elif node.op_type == "Mul":
            _scale_weights(graph, editor, node)
    for node in list(graph):
        if markers.is_quantizer(node):
            _absorb_followers(graph, node)
            _rectify_codes(graph, node)
    for node in list(graph):
        if markers.is_quantizer(node) and _joins_its_own_grid(node):
            markers.mark_joined(node)
    for node in list(graph):
        if node.op_type == "DepthToSpace":
            _convolve_before(graph, editor, node, VECTOR)
            _quantize_before(graph, node)
    editor.drop_unused_constants()


def prepare_for_engines(model: ir.Model, moves: Callable[[Grid], bool]) -> None:
    """The same for TensorRT, which rectifies and joins by itself, of quantizers whose grid may be moved; in place.

    A shuffle of what is on another grid stays in front of its quantizer, and so does what that one pads and shifts.
    """
    graph, editor = model.graph, GraphEditor(model.graph)
    for node in list(graph):
        if node.op_type == "DepthToSpace":
            _quantize_before(graph, node, moves)
    for node in list(graph):
        if markers.is_quantizer(node) and moves(markers.grid_of(node)):
            _absorb_followers(graph, node)
    for node in list(graph):
        if node.op_type == "DepthToSpace":
            _convolve_before(graph, editor, node, GPU_VECTOR)
            _quantize_before(graph, node, moves)
    editor.drop_unused_constants()


def _any_grid(_: Grid) -> bool:
    return True


def _quantize_before(graph: ir.Graph, shuffle: ir.Node, moves: Callable[[Grid], bool] = _any_grid) -> None:
    """Let the only reader of a pixel shuffle, if it is a quantizer, change places with it."""
    quantizer = only_consumer(shuffle.outputs[0])
    block = shuffle.attributes["blocksize"].as_int()
    if quantizer is None or not markers.is_quantizer(quantizer) or shuffle.outputs[0].is_graph_output():
        return
    if shuffle.attributes["mode"].as_string() != "CRD" or not moves(markers.grid_of(quantizer)):
        return
    swap(graph, shuffle, quantizer)
    quantizer.attributes["block"] = ir.AttrInt64("block", block * markers.block_of(quantizer))


def _scale_weights(graph: ir.Graph, editor: GraphEditor, product: ir.Node) -> None:
    """Let a convolution's scales and bias take in a positive number that its result, on its way to a grid, is times."""
    factor = next((array for value in product.inputs if (array := constant_array(value)) is not None), None)
    conv = next((value.producer() for value in product.inputs if value is not None and value.producer()), None)
    reader = only_consumer(product.outputs[0])
    if factor is None or factor.size != 1 or conv is None or conv.op_type != "Conv" or not markers.is_quantizer(reader):
        return
    weight = _own_weight(conv)
    times = float(factor.reshape(()))
    if times <= 0.0 or only_consumer(conv.outputs[0]) is not product or weight is None:
        return
    name = markers.layer_of(weight)
    for node, index, label in ((weight, 1, "scale_scaled"), (conv, 2, "bias_scaled")):
        array = constant_array(node.inputs[index]) if len(node.inputs) > index else None
        if array is not None:
            scaled = array.astype(np.float64) * times
            node.replace_input_with(index, editor.constant(f"{name}.{label}", scaled, np.float32))
    product.outputs[0].replace_all_uses_with(conv.outputs[0])
    graph.remove(product, safe=True)


def _absorb_followers(graph: ir.Graph, quantizer: ir.Node) -> None:
    """Let a quantizer stand for those of the same grid that read it, directly or through a Relu or a shuffle."""
    grid = markers.grid_of(quantizer)
    waiting = [quantizer.outputs[0]]
    while waiting:
        value = waiting.pop()
        for use in list(value.uses()):
            node = use.node
            result = node.outputs[0]
            if result.is_graph_output():
                continue
            if markers.is_quantizer(node) and markers.grid_of(node) == grid and not grid.is_free:
                markers.stand_for(
                    quantizer, [(markers.layer_of(node), markers.block_of(node)), *markers.others_of(node)]
                )
                waiting.append(value)
            elif node.op_type == "Relu" and grid.zero_point == 0 and not grid.is_free:
                waiting.append(value)
            else:
                continue
            for reader, index in [(each.node, each.idx) for each in result.uses()]:
                reader.replace_input_with(index, value)
            graph.remove(node, safe=True)


def _rectify_codes(graph: ir.Graph, quantizer: ir.Node) -> None:
    """Let a quantizer that only rectifiers read rectify by itself: zero is one of its levels."""
    readers = [use.node for use in quantizer.outputs[0].uses()]
    if markers.grid_of(quantizer).is_free or not readers or any(node.op_type != "Relu" for node in readers):
        return
    if any(node.outputs[0].is_graph_output() for node in readers):
        return
    markers.mark_rectified(quantizer)
    for node in readers:
        node.outputs[0].replace_all_uses_with(quantizer.outputs[0])
        graph.remove(node, safe=True)


def _joins_its_own_grid(quantizer: ir.Node) -> bool:
    """Whether a quantizer reads a concatenation of levels of its own grid, and so changes none.

    What holds the same levels twice is quantized again: taps name each part once.
    """
    grid, seen = markers.grid_of(quantizer), set[ir.Value | None]()
    waiting, parts = [quantizer.inputs[0]], 0
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if value in seen:
            return False
        seen.add(value)
        if node is not None and node.op_type == "Concat":
            waiting += node.inputs
            parts += 1
        elif node is None or not markers.is_quantizer(node) or markers.grid_of(node) != grid or grid.is_free:
            return False
    return parts > 0


def _convolve_before(graph: ir.Graph, editor: GraphEditor, shuffle: ir.Node, channels: int) -> None:
    """Move a convolution in front of the pixel shuffle that alone feeds it, where it has at most `channels` then."""
    conv = only_consumer(shuffle.outputs[0])
    block = shuffle.attributes["blocksize"].as_int()
    if conv is None or conv.op_type != "Conv" or not markers.is_quantizer(shuffle.inputs[0].producer()):  # type: ignore[union-attr]
        return
    weight = _own_weight(conv)
    if shuffle.attributes["mode"].as_string() != "CRD" or weight is None or not _keeps_size(conv):
        return
    codes, scale = (constant_array(value) for value in weight.inputs)
    if codes is None or scale is None or codes.shape[0] * block**2 > channels:
        return
    name = markers.layer_of(weight)
    repeats = block**2
    moved = scattered(codes.astype(np.int8), block)
    weight.replace_input_with(0, editor.constant(f"{name}.codes_moved", moved, np.int8))
    if scale.size > 1:
        weight.replace_input_with(1, editor.constant(f"{name}.scale_moved", np.repeat(scale, repeats), np.float32))
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        bias = constant_array(conv.inputs[2])
        assert bias is not None
        conv.replace_input_with(2, editor.constant(f"{name}.bias_moved", np.repeat(bias, repeats), np.float32))
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(moved.shape[2:]))
    conv.attributes["pads"] = ir.AttrInt64s("pads", [moved.shape[2] // 2, moved.shape[3] // 2] * 2)
    swap(graph, shuffle, conv)


def _own_weight(conv: ir.Node) -> ir.Node | None:
    """The marker of a convolution's weight; None where other runs of the layer read it, too, or it is float."""
    weight = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    if weight is None or not markers.is_weight(weight) or only_consumer(weight.outputs[0]) is not conv:
        return None
    return weight


def swap(graph: ir.Graph, first: ir.Node, second: ir.Node) -> None:
    """Let two nodes in a row change places; an output of the graph keeps its name."""
    between, result = first.outputs[0], second.outputs[0]
    second.replace_input_with(0, first.inputs[0])
    if result.is_graph_output():
        between.name, result.name = result.name, between.name
        between.shape, result.shape = result.shape, None
    result.replace_all_uses_with(between, replace_graph_outputs=True)
    first.replace_input_with(0, result)
    graph.remove(first)
    graph.insert_after(second, first)


def _keeps_size(conv: ir.Node) -> bool:
    """Whether a convolution is undivided, neither strided nor dilated, and pads so that the image keeps its size."""
    weight = conv.inputs[1]
    assert weight is not None
    plain = {"group": [1], "strides": [1, 1], "dilations": [1, 1]}
    for key, wanted in plain.items():
        if key in conv.attributes:
            found = conv.attributes[key]
            values = [found.as_int()] if key == "group" else list(found.as_ints())
            if values != wanted:
                return False
    codes = constant_array(weight.producer().inputs[0])  # type: ignore[union-attr]
    if codes is None or codes.ndim != 4 or codes.shape[2] % 2 == 0 or codes.shape[3] % 2 == 0:
        return False
    pads = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0] * 4
    return pads == [codes.shape[2] // 2, codes.shape[3] // 2] * 2
