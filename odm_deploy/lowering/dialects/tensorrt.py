"""The dialect for TensorRT 10/11 and TensorRT-RTX, which OpenVINO and ONNX Runtime compute rightly, too, but slower.

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

import numpy as np
import onnx_ir as ir

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import GraphEditor, only_consumer, replace_node
from odm_deploy.grid import Grid
from odm_deploy.lowering import markers
from odm_deploy.lowering.dialects.moving import prepare_for_engines
from odm_deploy.lowering.dialects.shared import (
    add_behind,
    bound_terms,
    center_of,
    clip_apart,
    lower_all,
    round_to_even_code,
    shift_bias,
)
from odm_deploy.lowering.metadata import Tap
from odm_deploy.lowering.quirks import openvino, tensorrt

INT8_MIN, INT8_MAX = -128, 127


def lower_markers(model: ir.Model) -> None:
    """Replace every marker of a marked graph in place, and note the taps in its metadata.

    Raises:
        InputError: a quantized tensor that feeds something else than one convolution or matrix product.
    """
    prepare_for_engines(model, _fits_int8)
    lower_all(model, _lower_quantizer)
    editor = GraphEditor(model.graph)
    clip_apart(model, editor)
    editor.drop_unused_constants()


def _lower_quantizer(editor: GraphEditor, marker: ir.Node, is_signal: bool) -> Tap:
    return _lower_signal(editor, marker) if is_signal else _lower_activation(editor, marker)


def _lower_activation(editor: GraphEditor, marker: ir.Node) -> Tap:
    grid, layer = markers.grid_of(marker), markers.layer_of(marker)
    source = marker.inputs[0]
    assert source is not None and source.name is not None
    x, padding = source, (0, 0)
    if _fits_int8(grid):
        offset = grid.zero_point
    else:
        offset = grid.code_half
        consumer = only_consumer(marker.outputs[0])
        if consumer is None:
            raise InputError(f"cannot lower {layer}", why="its quantized input feeds several operators")
        center = center_of(grid)
        padding = _take_padding(consumer)
        if any(padding):
            pads = editor.constant(f"{layer}.pads", [0, 0, *padding] * 2, np.int64)
            x = editor.node_before(marker, "Pad", [x, pads], f"{layer}.padded")
        x = _centered(editor, marker, layer, grid, x)
        shift_bias(editor, layer, consumer, center)
    consumer = only_consumer(marker.outputs[0])
    codes, levels = _quantize(editor, marker, layer, grid, x, offset)
    replace_node(marker, levels)
    if consumer is not None:
        for width in tensorrt.missing_additions(consumer):
            add_behind(
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
        center = editor.constant(f"{name}.center", center_of(grid), np.float32)
        levels = editor.node_before(marker, "Add", [levels, center], f"{name}.levels")
    replace_node(marker, levels)
    if x is source:
        bound_terms(editor, name, levels, grid)
    assert codes.name is not None
    return Tap(name, source.name, codes.name, offset, grid.zero_point)


def _centered(editor: GraphEditor, marker: ir.Node, name: str, grid: Grid, x: ir.Value) -> ir.Value:
    """`x` less the centre of its grid."""
    if not grid.is_free and grid.is_power_of_two and (grid.code_half - grid.zero_point) % 2:
        x = round_to_even_code(editor, marker, name, grid, x)
    shift = editor.constant(f"{name}.center", center_of(grid), np.float32)
    return editor.node_before(marker, "Sub", [x, shift], f"{name}.centered")


def _fits_int8(grid: Grid) -> bool:
    """Whether the codes minus the zero point fit int8, so that no shift is needed."""
    return not grid.is_free and grid.zero_point <= -INT8_MIN and grid.code_max - grid.zero_point <= INT8_MAX


def _quantize(
    editor: GraphEditor, marker: ir.Node, layer: str, grid: Grid, x: ir.Value, offset: int
) -> tuple[ir.Value, ir.Value]:
    """Bounds, Q and DQ in front of the marker; returns the codes and what they stand for."""
    lowest, highest = -offset, grid.code_max - offset
    shape = openvino.shape_of_channel_arithmetic(x)
    upper = openvino.comes_from_concat(x) or openvino.loses_channels(x) or openvino.flips_channels(x)
    # QuantizeLinear saturates to int8 by itself; only a narrower range needs bounds.
    for op, code, limit in (("Max", lowest, INT8_MIN), ("Min", highest, INT8_MAX)):
        if code != limit or (op == "Min" and upper):
            value = np.full(shape, np.float32(code) * np.float32(grid.scale))
            bound = editor.constant(f"{layer}.{op.lower()}", value, np.float32)
            x = editor.node_before(marker, op, [x, bound], f"{layer}.{op.lower()}_bounded")
    scale = editor.constant(f"{layer}.scale_x", grid.scale, np.float32)
    zero = editor.constant(f"{layer}.zero_point_x", 0, np.int8)
    codes = editor.node_before(marker, "QuantizeLinear", [x, scale, zero], f"{layer}.codes_x", dtype=ir.DataType.INT8)
    levels = editor.node_before(marker, "DequantizeLinear", [codes, scale, zero], f"{layer}.input")
    return codes, levels


def _take_padding(consumer: ir.Node) -> tuple[int, int]:
    """Set a convolution's padding to zero and return what it was, rows and columns; none for a matrix product."""
    if consumer.op_type != "Conv" or "pads" not in consumer.attributes:
        return 0, 0
    pads = list(consumer.attributes["pads"].as_ints())
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        raise InputError(f"cannot lower {consumer.name}", why=f"its padding {pads} differs from side to side")
    consumer.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    return top, left
