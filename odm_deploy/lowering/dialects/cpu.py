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
changes no weight and makes that multiple fine. Where it is not, a bound keeps them apart.

Two things about OpenVINO shape how codes are written, and were found by measurement only:

- OpenVINO adds the zero point before it rounds, so that an odd one makes ties go to odd codes. On power-of-two scales,
  where values do lie on ties, codes move up by one then; those of 8 bits have no room for it, and are rounded before
  (`Grid.from_range` makes no such grids).
- OpenVINO 2026.4 fuses convolution, quantizer, sum and the quantizer behind that, and leaves the first one out, which
  moves values that lie on ties; other terms it rescales before it adds them, which bf16 rounds. An upper bound between
  quantizer and sum, even the one that codes have anyway, keeps them apart (a lower one does, too, both do not). On
  power-of-two scales sums read signals through such a bound, and the model computes the same bytes with bf16 for what
  is float, as well. On other scales ties are rare, and sums that are fused with convolutions are worth more; but in
  models with layers of fewer bits a Clip on codes, to all that there are, keeps the quantizer of a convolution.

What else both compute wrongly or refuse, `odm_deploy.lowering.quirks` recognises.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import numpy as np
import onnx_ir as ir

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer, replace_node
from odm_deploy.grid import MAX_BITS, Grid
from odm_deploy.lowering import markers
from odm_deploy.lowering.dialects.attention import mask_at_once, separate_parts
from odm_deploy.lowering.dialects.blocks import shuffle_by_pixel
from odm_deploy.lowering.dialects.moving import prepare, swap
from odm_deploy.lowering.dialects.padded_channels import pad_channels
from odm_deploy.lowering.dialects.shared import (
    add_behind,
    bound_terms,
    center_of,
    clip_apart,
    keep_apart,
    lower_all,
    round_to_even_code,
    shift_bias,
)
from odm_deploy.lowering.metadata import Tap
from odm_deploy.lowering.quirks import onnxruntime, openvino, tensorrt

UINT8_MAX, INT8_MAX, INT16_MAX = 255, 127, 32767
_RECTIFIED = ".rectified.codes_x"
"""How codes end that were bounded by that of zero."""
_WHOLE = ".whole.codes_x"
"""How codes end whose bound leaves out none."""


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
        elif openvino.drops_axis_of_factors(node):
            # Before what quantizers read is noted by name.
            _drop_axis_apart(editor, node)
    lower_all(model, partial(_lower_quantizer, keeps_terms=_has_few_bits(model)))
    for node in list(model.graph):
        if node.op_type == "DepthToSpace":
            _shuffle_codes(model.graph, node)
            shuffle_by_pixel(model, editor, node)
    for node in reversed(list(model.graph)):
        if node.op_type == "Add":
            _shift_zero_point(editor, node)
        elif node.op_type == "Concat" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            # Its codes are joined instead.
            model.graph.remove(node, safe=True)
    for node in list(model.graph):
        if node.op_type == "Conv":
            pad_channels(editor, node)
        if (
            onnxruntime.would_lose_weights(node)
            or onnxruntime.would_look_up(node)
            or onnxruntime.would_round_bias(node)
        ):
            keep_apart(editor, node)
        if onnxruntime.may_shrink_smoothly(node):
            name = node.outputs[0].name
            same = editor.constant(f"{name}.same_shape", [0, 0, 0, 0], np.int64)
            node.replace_input_with(0, editor.node_before(node, "Reshape", [node.inputs[0], same], f"{name}.original"))
    for node in openvino.convolutions_before_products(model):
        keep_apart(editor, node)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            separate_parts(editor, node)
    mask_at_once(model, editor)
    clip_apart(model, editor)
    editor.drop_unused_constants()


def _drop_axis_apart(editor: GraphEditor, gather: ir.Node) -> None:
    """Let an operator of its own drop the axis of which one index is taken."""
    data, index = gather.inputs
    array, name = constant_array(index), gather.outputs[0].name or ""
    assert array is not None
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    taken = editor.constant(f"{name}.taken", array.reshape(1), np.int64)
    kept = editor.node_before(gather, "Gather", [data, taken], f"{name}.kept", {"axis": axis})
    dropped = editor.constant(f"{name}.dropped", [axis], np.int64)
    replace_node(gather, editor.node_before(gather, "Squeeze", [kept, dropped], name))


def _shuffle_codes(graph: ir.Graph, shuffle: ir.Node) -> None:
    """Let a pixel shuffle of dequantized codes shuffle the codes: bytes, and what follows reads DQ directly."""
    dequantize = shuffle.inputs[0].producer() if shuffle.inputs[0] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return
    if only_consumer(dequantize.outputs[0]) is not shuffle:
        return
    swap(graph, dequantize, shuffle)
    shuffled = shuffle.outputs[0]
    shuffled.dtype, shuffled.name = ir.DataType.UINT8, f"{shuffled.name}.codes"


def _shift_zero_point(editor: GraphEditor, addition: ir.Node) -> None:
    """Let the zero point stand for a whole number of steps that is added to dequantized codes, such as a mean colour.

    Exact on power-of-two scales: all values are whole numbers of steps. The largest tensor is not gone through again.
    """
    levels = next((value for value in addition.inputs if value is not None and value.producer() is not None), None)
    term = next((array for value in addition.inputs if (array := constant_array(value)) is not None), None)
    dequantize = levels.producer() if levels is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or term is None or levels is None:
        return
    scale, zero = (constant_array(value) for value in dequantize.inputs[1:])
    if scale is None or zero is None or scale.size > 1 or only_consumer(levels) is not addition:
        return
    steps = float(term.reshape(-1)[0]) / float(scale)
    moved = int(zero) - steps
    if (term != term.reshape(-1)[0]).any() or np.frexp(float(scale))[0] != 0.5 or not 0 <= moved <= UINT8_MAX:
        return
    if moved != int(moved):
        return
    name = (levels.name or "").removesuffix(".input")
    dequantize.replace_input_with(2, editor.constant(f"{name}.zero_point_shifted", int(moved), np.uint8))
    replace_node(addition, levels)


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


def _has_few_bits(model: ir.Model) -> bool:
    """Whether a layer has inputs of fewer than 8 bits, whose steps make much of what was not rounded before."""
    return any(markers.is_quantizer(node) and markers.grid_of(node).bits < MAX_BITS for node in model.graph)


def _lower_quantizer(editor: GraphEditor, marker: ir.Node, is_signal: bool, *, keeps_terms: bool) -> Tap:
    grid, name = markers.grid_of(marker), markers.layer_of(marker)
    source = marker.inputs[0]
    assert source is not None and source.name is not None
    if markers.is_joined(marker):
        return _lower_joined(editor, marker, name, grid)
    x = source
    if grid.is_free:
        center = editor.constant(f"{name}.center", center_of(grid), np.float32)
        x = editor.node_before(marker, "Sub", [x, center], f"{name}.centered")
        reader = only_consumer(marker.outputs[0])
        if reader is None or is_signal:
            raise InputError(f"cannot lower {name}", why="what lies on a free grid feeds several operators")
        shift_bias(editor, name, reader, center_of(grid))
    consumer = None if is_signal else only_consumer(marker.outputs[0])
    codes = _quantize(editor, marker, name, grid, x)
    kept = codes
    if markers.is_rectified(marker) and grid.zero_point:
        kept = _bounded(editor, marker, f"{name}.rectified", codes, grid.zero_point + _raised_by(grid), UINT8_MAX)
    elif keeps_terms and grid.bits == MAX_BITS and not grid.is_power_of_two and openvino.leaves_out(marker):
        kept = _bounded(editor, marker, f"{name}.whole", codes, 0, UINT8_MAX)
    replace_node(marker, levels := _dequantize(editor, marker, name, kept))
    bound_terms(editor, name, levels, grid)
    if consumer is not None:
        for width in tensorrt.missing_additions(consumer):
            zeros = editor.constant(f"{name}.nothing", [0.0] * width, np.float32)
            add_behind(editor, consumer, zeros, f"{name}.whole")
    assert codes.name is not None
    return Tap(name, source.name, codes.name, -_raised_by(grid), grid.zero_point)


def _raised_by(grid: Grid) -> int:
    """What is added to a grid's codes: 1 where its code of zero is odd and ties are common, else 0."""
    return int(not grid.is_free and grid.is_power_of_two and grid.zero_point % 2 == 1 and grid.code_max < UINT8_MAX)


def _quantize(editor: GraphEditor, marker: ir.Node, name: str, grid: Grid, x: ir.Value) -> ir.Value:
    """Q and bounds in front of the marker; returns the codes."""
    raised = _raised_by(grid)
    if not grid.is_free and grid.is_power_of_two and (grid.zero_point + raised) % 2:
        x = round_to_even_code(editor, marker, name, grid, x)
    misread = openvino.loses_channels(x) or openvino.flips_channels(x)
    if misread or (grid.code_max == UINT8_MAX and openvino.comes_from_concat(x)):
        value = np.float32(UINT8_MAX - grid.zero_point) * np.float32(grid.scale)
        bound = editor.constant(f"{name}.min", value, np.float32)
        x = editor.node_before(marker, "Min", [x, bound], f"{name}.min_bounded")
    scale = editor.constant(f"{name}.scale_x", grid.scale, np.float32)
    zero = editor.constant(f"{name}.zero_point_x", grid.zero_point + raised, np.uint8)
    codes = editor.node_before(
        marker, "QuantizeLinear", [x, scale, zero], f"{name}.saturated_x", dtype=ir.DataType.UINT8
    )
    if grid.code_max < UINT8_MAX:
        codes = _bounded(editor, marker, name, codes, raised, grid.code_max + raised)
    return codes


def _bounded(editor: GraphEditor, marker: ir.Node, name: str, codes: ir.Value, first: int, last: int) -> ir.Value:
    """Codes within [first, last]."""
    bounds = [editor.constant(f"{name}.{end}_code", code, np.uint8) for end, code in (("first", first), ("last", last))]
    return editor.node_before(marker, "Clip", [codes, *bounds], f"{name}.codes_x", dtype=ir.DataType.UINT8)


def _dequantize(editor: GraphEditor, marker: ir.Node, name: str, codes: ir.Value) -> ir.Value:
    """The levels that codes stand for."""
    _, *scale_and_zero = _quantizer_of(codes).inputs
    return editor.node_before(marker, "DequantizeLinear", [codes, *scale_and_zero], f"{name}.input")


def _quantizer_of(codes: ir.Value) -> ir.Node:
    """The QuantizeLinear that codes come from, bounded or not; of joined ones the first."""
    node = codes.producer()
    while node is not None and node.op_type != "QuantizeLinear":
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    assert node is not None, "codes are made by quantizers only"
    return node


def _lower_joined(editor: GraphEditor, marker: ir.Node, name: str, grid: Grid) -> Tap:
    """Join the codes of what is on one grid already, and let the marker's reader take them."""
    joined = marker.inputs[0]
    assert joined is not None
    codes = _codes_of(editor, joined)
    replace_node(marker, _dequantize(editor, marker, name, codes))
    first = _quantizer_of(codes)
    source = first.inputs[0]
    assert codes.name is not None and source is not None and source.name is not None
    same_as = (first.outputs[0].name or "").partition(".saturated_x")[0]
    parts = dict(_joined_parts(codes))
    return Tap(name, source.name, codes.name, -_raised_by(grid), grid.zero_point, same_as=same_as, joined=parts)


def _joined_parts(codes: ir.Value) -> Generator[tuple[str, bool]]:
    """The codes of quantizers that joined ones consist of, by name, and whether they are rectified before."""
    node = codes.producer()
    assert node is not None and codes.name is not None
    if node.op_type == "Concat":
        for value in node.inputs:
            assert value is not None
            yield from _joined_parts(value)
    elif codes.name.endswith(_WHOLE):
        assert node.inputs[0] is not None
        yield from _joined_parts(node.inputs[0])
    elif is_rectified := codes.name.endswith(_RECTIFIED):
        bounded = node.inputs[0]
        assert bounded is not None and bounded.name is not None
        yield bounded.name, is_rectified
    else:
        yield codes.name, is_rectified


def _codes_of(editor: GraphEditor, levels: ir.Value) -> ir.Value:
    """The codes of a dequantized tensor, or of several side by side; joined once however often they are read."""
    node = levels.producer()
    assert node is not None
    if node.op_type == "DequantizeLinear":
        assert node.inputs[0] is not None
        return node.inputs[0]
    parts = [_codes_of(editor, value) for value in node.inputs if value is not None]
    for use in parts[0].uses():
        if use.node.op_type == "Concat" and list(use.node.inputs) == parts:
            return use.node.outputs[0]
    axis = {"axis": node.attributes["axis"].as_int()}
    return editor.node_before(node, "Concat", parts, f"{node.name}.codes", axis, dtype=ir.DataType.UINT8)
