"""The one dialect of lowered graphs: what TensorRT 10/11, TensorRT-RTX, OpenVINO and ONNX Runtime execute as int8.

Their common rule: int8, zero point 0, a scalar scale; weights int8 with a scale per output channel (axis 0). So a grid
of b bits with zero point z becomes, exactly:

- *bounded* (b <= 7, or any grid whose shifted codes fit int8): the codes -z .. 2^b-1-z fit int8 as they are.

      x -> Max(-z*s) -> Min((2^b-1-z)*s) -> QuantizeLinear(s, 0) -> DequantizeLinear -> Conv

  Max and Min rather than Clip: TensorRT has lost the upper bound of a Clip (NVIDIA/TensorRT#4606).

- *shifted* (8 bits asymmetric, and every free grid): codes are taken around the middle level c.

      x -> Pad(0) -> Sub(c) [-> Max -> Min] -> QuantizeLinear(s, 0) -> DequantizeLinear -> Conv(pads=0)

  with c = s * (2^(b-1) - z), or the free grid's center. The convolution then sees x^ - c, so its bias grows by
  c * sum(w^). Padding happens on the real value, before the shift, so no border term appears. Writing an asymmetric
  8-bit range naively as int8 with zero point 0 instead saturates at 127 codes, silently.

  Half a step rounds to the even code, and shifting by an odd number of codes makes even ones odd. Values fall exactly
  between two codes only where arithmetic is exact, on power-of-two scales; there such a grid is rounded before the
  shift, `Div(s) -> Round -> Mul(s)`. (`Grid.from_range` avoids odd shifts on such scales, which costs nothing.)

- *signals*, tensors between layers (`quantization.signals`): the same, but whoever reads one sees its levels, so what
  was subtracted is added again, `... -> DequantizeLinear -> Add(c)`.

Every form folds into one pointwise kernel in front of an int8 convolution.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer, replace_node
from odm_deploy.grid import Grid
from odm_deploy.lowering import markers, quirks
from odm_deploy.lowering.metadata import Tap, run_name, write_taps

INT8_MIN, INT8_MAX = -128, 127


def lower_markers(model: ir.Model) -> None:
    """Replace every marker of a marked graph in place, and note the taps in its metadata.

    Raises:
        InputError: a quantized tensor that feeds something else than one convolution or matrix product.
    """
    editor = GraphEditor(model.graph)
    runs: Counter[str] = Counter()
    taps: list[Tap] = []
    signals = markers.signal_names(model)
    for node in list(model.graph):
        if node.domain == markers.DOMAIN and node.op_type == markers.FAKE_QUANTIZE:
            layer = markers.layer_of(node)
            tap = _lower_signal(editor, node) if layer in signals else _lower_activation(editor, node)
            taps.append(replace(tap, layer=run_name(layer, runs[layer])))
            runs[layer] += 1
    # Weights come second: shifting a bias needs the codes behind the weight marker.
    for node in list(model.graph):
        if node.domain == markers.DOMAIN and node.op_type == markers.DEQUANTIZE_WEIGHT:
            _lower_weight(editor, node)
    editor.drop_unused_constants()
    model.opset_imports.pop(markers.DOMAIN, None)
    write_taps(model.metadata_props, taps)


def _lower_activation(editor: GraphEditor, marker: ir.Node) -> Tap:
    grid, layer = markers.grid_of(marker), markers.layer_of(marker)
    source = marker.inputs[0]
    assert source is not None and source.name is not None
    x, padding = source, 0
    if _fits_int8(grid):
        offset = grid.zero_point
    else:
        offset = grid.code_half
        consumer = only_consumer(marker.outputs[0])
        if consumer is None:
            raise InputError(f"cannot lower {layer}", why="its quantized input feeds several operators")
        center = _center(grid)
        padding = _take_padding(consumer)
        if padding:
            pads = editor.constant(f"{layer}.pads", [0, 0, padding, padding] * 2, np.int64)
            x = editor.node_before(marker, "Pad", [x, pads], f"{layer}.padded")
        x = _centered(editor, marker, layer, grid, x)
        _shift_bias(editor, layer, consumer, center)
    consumer = only_consumer(marker.outputs[0])
    codes, levels = _quantize(editor, marker, layer, grid, x, offset)
    replace_node(marker, levels)
    if consumer is not None:
        for width in quirks.missing_additions(consumer):
            _add_behind(
                editor, consumer, editor.constant(f"{layer}.nothing", [0.0] * width, np.float32), f"{layer}.whole"
            )
    assert codes.name is not None
    return Tap(layer, source.name, codes.name, offset, grid.zero_point, padding)


def _lower_signal(editor: GraphEditor, marker: ir.Node) -> Tap:
    """A tensor that anybody may read: its levels stay what they are."""
    grid, name = markers.grid_of(marker), markers.layer_of(marker)
    source = marker.inputs[0]
    assert source is not None and source.name is not None
    x, offset = source, grid.zero_point
    if not _fits_int8(grid):
        x, offset = _centered(editor, marker, name, grid, x), grid.code_half
    codes, levels = _quantize(editor, marker, name, grid, x, offset)
    if x is not source:
        center = editor.constant(f"{name}.center", _center(grid), np.float32)
        levels = editor.node_before(marker, "Add", [levels, center], f"{name}.levels")
    replace_node(marker, levels)
    assert codes.name is not None
    return Tap(name, source.name, codes.name, offset, grid.zero_point)


def _center(grid: Grid) -> float:
    """The real value that signed codes are taken around."""
    if grid.center is not None:
        return grid.center
    return float(np.float32(grid.scale * (grid.code_half - grid.zero_point)))


def _centered(editor: GraphEditor, marker: ir.Node, name: str, grid: Grid, x: ir.Value) -> ir.Value:
    """`x` less the centre of its grid."""
    if not grid.is_free and grid.is_power_of_two and (grid.code_half - grid.zero_point) % 2:
        x = _round_to_even_code(editor, marker, name, grid, x)
    shift = editor.constant(f"{name}.center", _center(grid), np.float32)
    return editor.node_before(marker, "Sub", [x, shift], f"{name}.centered")


def _fits_int8(grid: Grid) -> bool:
    """Whether the codes minus the zero point fit int8, so that no shift is needed."""
    return not grid.is_free and grid.zero_point <= -INT8_MIN and grid.code_max - grid.zero_point <= INT8_MAX


def _round_to_even_code(editor: GraphEditor, marker: ir.Node, layer: str, grid: Grid, x: ir.Value) -> ir.Value:
    """The multiple of the scale nearest to `x`, ties to the even one; exact, because the scale is a power of two."""
    step = editor.constant(f"{layer}.step", grid.scale, np.float32)
    for op, operands in (("Div", [step]), ("Round", []), ("Mul", [step])):
        x = editor.node_before(marker, op, [x, *operands], f"{layer}.{op.lower()}")
    return x


def _quantize(
    editor: GraphEditor, marker: ir.Node, layer: str, grid: Grid, x: ir.Value, offset: int
) -> tuple[ir.Value, ir.Value]:
    """Bounds, Q and DQ in front of the marker; returns the codes and what they stand for."""
    lowest, highest = -offset, grid.code_max - offset
    shape, concatenated = quirks.shape_of_channel_arithmetic(x), quirks.comes_from_concat(x)
    # QuantizeLinear saturates to int8 by itself; only a narrower range needs bounds.
    for op, code, limit in (("Max", lowest, INT8_MIN), ("Min", highest, INT8_MAX)):
        if code != limit or (op == "Min" and concatenated):
            value = np.full(shape, np.float32(code) * np.float32(grid.scale))
            bound = editor.constant(f"{layer}.{op.lower()}", value, np.float32)
            x = editor.node_before(marker, op, [x, bound], f"{layer}.{op.lower()}_bounded")
    scale = editor.constant(f"{layer}.scale_x", grid.scale, np.float32)
    zero = editor.constant(f"{layer}.zero_point_x", 0, np.int8)
    codes = editor.node_before(marker, "QuantizeLinear", [x, scale, zero], f"{layer}.codes_x", dtype=ir.DataType.INT8)
    levels = editor.node_before(marker, "DequantizeLinear", [codes, scale, zero], f"{layer}.input")
    return codes, levels


def _take_padding(consumer: ir.Node) -> int:
    """Set a convolution's padding to zero and return what it was; 0 for a matrix product."""
    if consumer.op_type != "Conv":
        return 0
    pads = list(consumer.attributes["pads"].as_ints()) if "pads" in consumer.attributes else [0]
    if len(set(pads)) != 1:
        raise InputError(f"cannot lower {consumer.name}", why=f"its padding {pads} differs from side to side")
    consumer.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    return pads[0]


def _shift_bias(editor: GraphEditor, layer: str, consumer: ir.Node, center: float) -> None:
    """Add center * sum(w^) per output channel to what `consumer` computes."""
    weight = next((value for value in consumer.inputs if _weight_marker(value) is not None), None)
    marker = _weight_marker(weight)
    if marker is None:
        raise InputError(
            f"cannot lower {layer}", why=f"a {consumer.op_type} with float weights reads its quantized input"
        )
    codes, scale = (constant_array(value) for value in marker.inputs)
    assert codes is not None and scale is not None
    # In float64, rounded once: this sum must not add noise of its own.
    sums = codes.astype(np.int64).reshape(codes.shape[0], -1).sum(1) * scale.astype(np.float64) * center
    if consumer.op_type in ("Conv", "Gemm"):
        bias = constant_array(consumer.inputs[2]) if len(consumer.inputs) > 2 else None
        total = sums if bias is None else bias.astype(np.float64) + sums
        consumer.resize_inputs(3)
        consumer.replace_input_with(2, editor.constant(f"{layer}.bias_shifted", total, np.float32))
        return
    # A matrix product has no bias input. Runtimes fold two additions of constants.
    _add_behind(editor, consumer, editor.constant(f"{layer}.bias_shift", sums, np.float32), f"{layer}.shifted")


def _add_behind(editor: GraphEditor, node: ir.Node, term: ir.Value, name: str) -> None:
    """Let whoever read `node`'s output read that plus `term` instead."""
    result = node.outputs[0]
    users = [(use.node, use.idx) for use in result.uses()]
    if not users:
        return
    added = editor.node_before(users[0][0], "Add", [result, term], name)
    for user, index in users:
        user.replace_input_with(index, added)


def _weight_marker(value: ir.Value | None) -> ir.Node | None:
    """The weight marker behind `value`, through a transpose if there is one."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    is_marker = node is not None and node.domain == markers.DOMAIN and node.op_type == markers.DEQUANTIZE_WEIGHT
    return node if is_marker else None


def _lower_weight(editor: GraphEditor, marker: ir.Node) -> None:
    """DequantizeLinear with int8 zero points: per output channel on axis 0, per layer with a scalar."""
    layer = markers.layer_of(marker)
    codes, scale_value = marker.inputs
    scale = constant_array(scale_value)
    assert codes is not None and scale is not None
    per_channel = scale.size > 1
    shape = scale.shape if per_channel else ()
    scale_w = editor.constant(f"{layer}.scale_w", scale.reshape(shape), np.float32)
    zero_w = editor.constant(f"{layer}.zero_point_w", np.zeros(shape), np.int8)
    axis = {"axis": 0} if per_channel else None
    weight = editor.node_before(marker, "DequantizeLinear", [codes, scale_w, zero_w], f"{layer}.weight", axis)
    replace_node(marker, weight)
