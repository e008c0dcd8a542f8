"""What all dialects have in common: the walk over a marked graph, and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx import TypeProto

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import GraphEditor, constant_array, replace_node
from odm_deploy.graphs.shapes import infer_types
from odm_deploy.grid import Grid
from odm_deploy.lowering import markers
from odm_deploy.lowering.metadata import Tap, run_name, write_taps
from odm_deploy.lowering.quirks import onnxruntime, openvino

LowerQuantizer = Callable[[GraphEditor, ir.Node, bool], Tap]
"""Replaces one `FakeQuantize` marker; is told whether it is a signal, which anybody may read."""


def lower_all(model: ir.Model, lower_quantizer: LowerQuantizer) -> None:
    """Replace every marker of a marked graph in place, and note the taps in its metadata.

    Raises:
        InputError: a quantized tensor that feeds something else than one convolution or matrix product.
    """
    editor = GraphEditor(model.graph)
    runs: Counter[str] = Counter()
    taps: list[Tap] = []
    signals = markers.signal_names(model)
    for node in list(model.graph):
        if markers.is_quantizer(node):
            layer = markers.layer_of(node)
            moved, also = markers.block_of(node), markers.others_of(node)
            tap = lower_quantizer(editor, node, layer in signals)
            taps.append(replace(tap, layer=run_name(layer, runs[layer]), block=moved))
            runs[layer] += 1
            own = taps[-1]
            for other, block in also:
                taps.append(replace(own, layer=run_name(other, runs[other]), block=block, same_as=own.layer))
                runs[other] += 1
    # Weights come second: shifting a bias needs the codes behind the weight marker.
    for node in list(model.graph):
        if markers.is_weight(node):
            _lower_weight(editor, node)
    editor.drop_unused_constants()
    model.opset_imports.pop(markers.DOMAIN, None)
    _spare_runtimes(model, editor)
    write_taps(model.metadata_props, taps)


def _spare_runtimes(model: ir.Model, editor: GraphEditor) -> None:
    """Keep apart, by bounds that change nothing, what runtimes would make one operator of, and compute wrongly."""
    shared = [node for node in model.graph if openvino.shared_without_bias(node)]
    measured = openvino.convolutions_whose_size_is_read(model)
    for node in dict.fromkeys(
        [
            *openvino.convolutions_of_one_pixel(model),
            *openvino.extremes_of_codes(model),
            *shared,
            *(node for node in model.graph if node in measured),
        ]
    ):
        keep_apart(editor, node)
    for node in list(model.graph):
        if (
            openvino.loses_epsilon(node)
            or openvino.averages_codes(node)
            or openvino.folds_padding(node)
            or openvino.shuffles_joined(node)
            or onnxruntime.takes_in_padding(node)
        ):
            node.replace_input_with(0, _bounded_before(editor, node, node.inputs[0]))
        elif openvino.keeps_signs(node):
            _compare_with_opposite(editor, node)


def _compare_with_opposite(editor: GraphEditor, absolute: ir.Node) -> None:
    """The larger one of numbers and their opposites, for their absolute value."""
    x, result = absolute.inputs[0], absolute.outputs[0]
    assert x is not None and x.dtype is not None
    opposite = editor.node_before(absolute, "Neg", [x], f"{result.name}.opposite", dtype=x.dtype)
    replace_node(absolute, editor.node_before(absolute, "Max", [x, opposite], f"{result.name}.larger", dtype=x.dtype))


def center_of(grid: Grid) -> float:
    """The real value that signed codes are taken around."""
    if grid.center is not None:
        return grid.center
    return float(np.float32(grid.scale * (grid.code_half - grid.zero_point)))


def round_to_even_code(editor: GraphEditor, marker: ir.Node, layer: str, grid: Grid, x: ir.Value) -> ir.Value:
    """The multiple of the scale nearest to `x`, ties to the even one; exact, because the scale is a power of two."""
    step = editor.constant(f"{layer}.step", grid.scale, np.float32)
    for op, operands in (("Div", [step]), ("Round", []), ("Mul", [step])):
        x = editor.node_before(marker, op, [x, *operands], f"{layer}.{op.lower()}")
    return x


def shift_bias(editor: GraphEditor, layer: str, consumer: ir.Node, center: float) -> None:
    """Add center * sum(w^) per output channel to what `consumer` computes.

    Raises:
        InputError: its weights are float.
    """
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
    add_behind(editor, consumer, editor.constant(f"{layer}.bias_shift", sums, np.float32), f"{layer}.shifted")


def bound_terms(editor: GraphEditor, name: str, levels: ir.Value, grid: Grid) -> None:
    """On power-of-two scales, let sums read levels through the upper bound that these have anyway.

    OpenVINO 2026.4 fuses convolution, quantizer, sum and the quantizer behind that, and leaves the first one out, which
    shows where values lie on ties; the bound keeps them apart.
    """
    sums = [use.node for use in levels.uses() if use.node.op_type == "Add"]
    if not sums or not grid.is_power_of_two:
        return
    bound = editor.constant(f"{name}.last_level", grid.upper, np.float32)
    bounded = editor.node_before(sums[0], "Min", [levels, bound], f"{name}.bounded_term")
    for node in sums:
        for index, value in enumerate(node.inputs):
            if value is levels:
                node.replace_input_with(index, bounded)


def clip_apart(model: ir.Model, editor: GraphEditor) -> None:
    """Clip by operators that OpenVINO does not join, wherever it would move a bound (`openvino.truncates_bounds`)."""
    clips = [node for node in model.graph if openvino.truncates_bounds(node)]
    types = infer_types(ir.to_proto(model)) if clips else {}
    for clip in clips:
        name = clip.outputs[0].name
        _clip_apart(editor, clip, _shape_per_channel(types.get(name or "")))


def _clip_apart(editor: GraphEditor, clip: ir.Node, shape: tuple[int, ...]) -> None:
    name, x = clip.outputs[0].name, clip.inputs[0]
    for index, op, end in ((1, "Max", "first"), (2, "Min", "last")):
        bound = constant_array(clip.inputs[index]) if len(clip.inputs) > index else None
        if bound is not None and op == "Max" and float(bound) == 0.0:
            # With it, a bound for all channels serves.
            x, shape = editor.node_before(clip, "Relu", [x], f"{name}.positive"), ()
        elif bound is not None:
            limit = editor.constant(f"{name}.{end}", np.full(shape, bound), np.float32)
            x = editor.node_before(clip, op, [x, limit], f"{name}.to_{end}")
    assert x is not None
    replace_node(clip, x)
    # A quantizer's tap may call it by that.
    x.name = name


def _shape_per_channel(kind: TypeProto.Tensor | None) -> tuple[int, ...]:
    """Shape of a constant with one number a channel, or along whatever axis has a known size; () where none has."""
    sizes = [dim.dim_value for dim in kind.shape.dim] if kind is not None else []
    axis = next((axis for axis, size in enumerate(sizes) if size > 1), None)
    return () if axis is None else tuple(size if each == axis else 1 for each, size in enumerate(sizes))


def add_behind(editor: GraphEditor, node: ir.Node, term: ir.Value, name: str) -> None:
    """Let whoever read `node`'s output read that plus `term` instead."""
    result = node.outputs[0]
    users = [(use.node, use.idx) for use in result.uses()]
    if not users:
        return
    added = editor.node_before(users[0][0], "Add", [result, term], name)
    for user, index in users:
        user.replace_input_with(index, added)


def keep_apart(editor: GraphEditor, layer: ir.Node) -> None:
    """Put a bound that changes nothing behind `layer`, so that no runtime makes one operator of it and what follows."""
    result = layer.outputs[0]
    users = [(use.node, use.idx) for use in result.uses()]
    first = next(node for node in editor.graph if any(node is user for user, _ in users))
    bounded = _bounded_before(editor, first, result)
    for user, index in users:
        user.replace_input_with(index, bounded)


def _bounded_before(editor: GraphEditor, anchor: ir.Node, value: ir.Value | None) -> ir.Value:
    """`value` through a bound that changes nothing, in front of `anchor`."""
    assert value is not None
    lowest = editor.constant(f"{value.name}.lowest", np.finfo(np.float32).min, np.float32)
    return editor.node_before(anchor, "Max", [value, lowest], f"{value.name}.float")


def _weight_marker(value: ir.Value | None) -> ir.Node | None:
    """The weight marker behind `value`, through a transpose if there is one."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and markers.is_weight(node) else None


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
    array = np.asarray(constant_array(codes))
    for run in openvino.runs_of_groups(weight)[1:]:
        own = editor.constant(f"{layer}.codes", array, np.int8)
        run.replace_input_with(
            1, editor.node_before(run, "DequantizeLinear", [own, scale_w, zero_w], f"{layer}.weight", axis)
        )
