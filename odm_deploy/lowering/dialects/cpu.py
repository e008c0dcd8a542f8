"""The dialect for runtimes on CPUs, OpenVINO and ONNX Runtime: uint8 with the zero point that the grid has.

    x -> QuantizeLinear(s, z) [-> Clip(0, 2^b-1) on codes] -> DequantizeLinear(s, z) -> Conv with its own padding

Exact as it stands: this is the definition of the grid. QuantizeLinear saturates at 0 and 255 by itself, so only grids
of less than 8 bits need a bound, on integers: between Q and DQ it does not keep ONNX Runtime from fusing the quantizer
with the convolution before it, which bounds on floats do. The convolution pads with the code of zero; the `Pad` and
`Sub` of the `tensorrt` dialect run as operators of their own on CPUs, and the former in a slow reference kernel.

Free grids have no code of zero. Codes are taken around their center, `x -> Sub(c) -> Q(s, 2^(b-1))`, and the consumer's
bias grows by c * sum(w^); their network pads before.

Where a quantizer follows a convolution, ONNX Runtime fuses the two and rounds the bias to a multiple of both scales'
product. Weights of few bits leave room in int8: their codes are doubled and their scale halved, over and over, which
changes no weight and makes that multiple fine.

Two places need care, and are found by measurement only:

- OpenVINO adds the zero point before it rounds, so that an odd one makes ties go to odd codes. On power-of-two scales,
  where values do lie on ties, codes move up by one then; those of 8 bits have no room for it, and are rounded before
  (`Grid.from_range` makes no such grids).
- A quantizer of all 256 codes behind a Concat (`quirks.comes_from_concat`) needs a bound before it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer, replace_node
from odm_deploy.grid import Grid
from odm_deploy.lowering import markers, quirks
from odm_deploy.lowering.dialects.moving import prepare
from odm_deploy.lowering.dialects.shared import add_behind, center_of, lower_all, round_to_even_code, shift_bias
from odm_deploy.lowering.metadata import Tap

UINT8_MAX, INT8_MAX, INT16_MAX = 255, 127, 32767


def lower_markers(model: ir.Model) -> None:
    """Replace every marker of a marked graph in place, and note the taps in its metadata.

    Raises:
        InputError: a free grid in front of something else than one convolution or matrix product.
    """
    prepare(model)
    editor = GraphEditor(model.graph)
    for node in list(model.graph):
        if markers.is_weight(node):
            _refine_weight(editor, node)
    lower_all(model, _lower_quantizer)
    for node in list(model.graph):
        if node.op_type == "DepthToSpace":
            _shuffle_codes(model.graph, node)


def _shuffle_codes(graph: ir.Graph, shuffle: ir.Node) -> None:
    """Let a pixel shuffle of dequantized codes shuffle the codes: bytes, and what follows reads DQ directly."""
    dequantize = shuffle.inputs[0].producer() if shuffle.inputs[0] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or shuffle.outputs[0].is_graph_output():
        return
    if only_consumer(dequantize.outputs[0]) is not shuffle:
        return
    shuffled, levels = shuffle.outputs[0], dequantize.outputs[0]
    shuffle.replace_input_with(0, dequantize.inputs[0])
    shuffled.replace_all_uses_with(levels)
    dequantize.replace_input_with(0, shuffled)
    shuffled.dtype, shuffled.name = ir.DataType.UINT8, f"{shuffled.name}.codes"
    graph.remove(dequantize)
    graph.insert_after(shuffle, dequantize)


def _refine_weight(editor: GraphEditor, marker: ir.Node) -> None:
    """Double the codes of a weight and halve its scale as often as int8 allows: the same numbers, to the bit."""
    codes, scale = (constant_array(value) for value in marker.inputs)
    assert codes is not None and scale is not None
    reader = only_consumer(marker.outputs[0])
    if reader is None or reader.op_type != "Conv" or codes.dtype != np.int8:
        return
    source = reader.inputs[0].producer() if reader.inputs[0] is not None else None
    while source is not None and source.op_type == "DepthToSpace":
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    if source is None or not markers.is_quantizer(source):
        return
    grid = markers.grid_of(source)
    # Instruction sets without VNNI add two products in 16 bits, and saturate.
    largest = min(INT8_MAX, INT16_MAX // (2 * (grid.code_max + _raised_by(grid))))
    used = max(int(np.abs(codes.astype(np.int16)).max(initial=0)), 1)
    factor = 1
    while 2 * factor * used <= largest:
        factor *= 2
    if factor > 1:
        name = markers.layer_of(marker)
        refined = codes.astype(np.int16) * factor
        marker.replace_input_with(0, editor.constant(f"{name}.codes_refined", refined, np.int8))
        finer = scale.astype(np.float32) / np.float32(factor)
        marker.replace_input_with(1, editor.constant(f"{name}.scale_refined", finer, np.float32))


def _lower_quantizer(editor: GraphEditor, marker: ir.Node, is_signal: bool) -> Tap:
    grid, name = markers.grid_of(marker), markers.layer_of(marker)
    source = marker.inputs[0]
    assert source is not None and source.name is not None
    x = source
    if grid.is_free:
        center = editor.constant(f"{name}.center", center_of(grid), np.float32)
        x = editor.node_before(marker, "Sub", [x, center], f"{name}.centered")
        reader = only_consumer(marker.outputs[0])
        if reader is None or is_signal:
            raise InputError(f"cannot lower {name}", why="what lies on a free grid feeds several operators")
        shift_bias(editor, name, reader, center_of(grid))
    consumer = None if is_signal else only_consumer(marker.outputs[0])
    codes, levels = _quantize(editor, marker, name, grid, x)
    replace_node(marker, levels)
    if consumer is not None:
        for width in quirks.missing_additions(consumer):
            zeros = editor.constant(f"{name}.nothing", [0.0] * width, np.float32)
            add_behind(editor, consumer, zeros, f"{name}.whole")
    assert codes.name is not None
    return Tap(name, source.name, codes.name, -_raised_by(grid), grid.zero_point)


def _raised_by(grid: Grid) -> int:
    """What is added to a grid's codes: 1 where its code of zero is odd and ties are common, else 0."""
    return int(not grid.is_free and grid.is_power_of_two and grid.zero_point % 2 == 1 and grid.code_max < UINT8_MAX)


def _quantize(editor: GraphEditor, marker: ir.Node, name: str, grid: Grid, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Q, bounds and DQ in front of the marker; returns the codes and what they stand for."""
    raised = _raised_by(grid)
    if not grid.is_free and grid.is_power_of_two and (grid.zero_point + raised) % 2:
        x = round_to_even_code(editor, marker, name, grid, x)
    if grid.code_max == UINT8_MAX and quirks.comes_from_concat(x):
        value = np.float32(UINT8_MAX - grid.zero_point) * np.float32(grid.scale)
        bound = editor.constant(f"{name}.min", value, np.float32)
        x = editor.node_before(marker, "Min", [x, bound], f"{name}.min_bounded")
    scale = editor.constant(f"{name}.scale_x", grid.scale, np.float32)
    zero = editor.constant(f"{name}.zero_point_x", grid.zero_point + raised, np.uint8)
    uint8 = ir.DataType.UINT8
    codes = editor.node_before(marker, "QuantizeLinear", [x, scale, zero], f"{name}.saturated_x", dtype=uint8)
    if grid.code_max < UINT8_MAX:
        bounds = [
            editor.constant(f"{name}.{end}_code", code + raised, np.uint8)
            for end, code in (("first", 0), ("last", grid.code_max))
        ]
        codes = editor.node_before(marker, "Clip", [codes, *bounds], f"{name}.codes_x", dtype=uint8)
    levels = editor.node_before(marker, "DequantizeLinear", [codes, scale, zero], f"{name}.input")
    return codes, levels
