"""Activation quantizers as int8 with zero point 0 and a scalar scale.

With k = code - zero point, three forms (see `lowering.dialect`):

- the k fit int8: bounds where they are fewer than 256, and Q with zero point 0. Equal to the bit.
- up to 256 of them, elsewhere: k - m fits int8. `Pad(0) -> Sub(scale * m) -> Q -> DQ -> Conv(pads=0)`, and the
  convolution's bias grows by scale * m * sum(w). Everybody else who reads the values gets scale * m added.
- more than 256, or a scale a channel: the same rounding in float arithmetic. TensorRT has no codes for these.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from odm_deploy.lowering.fixing.changes import Changes, Tap
from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edit import Rewriter, attribute, set_attribute
from odm_deploy.lowering.fixing.quantizers import Pair, Parameters, is_activation_quantizer, pairs_of
from odm_deploy.lowering.fixing.weights import Weights
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE


def fix_activations(editor: Rewriter, constants: Constants, changes: Changes, weights: dict[ir.Node, Weights]) -> None:
    """Rewrite every activation quantizer that TensorRT would refuse, saturate or take for one a channel."""
    for quantize in [node for node in editor.graph if is_activation_quantizer(constants, node)]:
        pairs = pairs_of(constants, quantize)
        if isinstance(pairs, str):
            changes.leave(f"{quantize.name}: {pairs}")
            continue
        for pair in pairs:
            _fix(editor, constants, changes, weights, pair)


def _fix(editor: Rewriter, constants: Constants, changes: Changes, weights: dict[ir.Node, Weights], pair: Pair) -> None:
    per_channel = not pair.given.is_uniform or not pair.taken.is_uniform
    if not per_channel and pair.is_legal:
        return
    if not {pair.given.scale.dtype, pair.taken.scale.dtype} <= {np.dtype(np.float32)} and not _is_bounded_half(pair):
        changes.leave(f"{pair.quantize.name}: its scale is not float32, and its steps are no int8 codes")
        return
    if per_channel and pair.given.kind == pair.taken.kind == TensorProto.INT8 and not np.any(pair.given.zero_point):
        changes.leave(f"{pair.quantize.name}: one scale a channel, so the layers behind it run in float")
        return
    if per_channel or pair.steps[1] - pair.steps[0] > 255 or pair.given.zero != pair.taken.zero:
        _emulate(editor, constants, changes, pair)
    elif pair.fits:
        source = pair.quantize.inputs[0]
        assert source is not None
        editor.replace(pair.dequantize.outputs[0], _codes(editor, changes, pair, source, 0, ()))
        changes.did("activations quantized as int8 with zero point 0 and a scalar scale")
    else:
        _shift(editor, constants, changes, weights, pair)


def _is_bounded_half(pair: Pair) -> bool:
    """Whether bounds make a quantizer of half-precision values a plain int8 one.

    A bound may be rounded, by 2**-11 of itself: that is 1/16 of a step, and half a step would be too much.
    """
    parts = (pair.given, pair.taken)
    halves = all(each.scale.dtype == np.float16 and each.is_uniform for each in parts)
    x = pair.quantize.inputs[0]
    halves = halves and x is not None and x.dtype in (None, ir.DataType.FLOAT16)
    largest = max(map(abs, pair.steps)) * float(pair.given.step)
    return halves and pair.fits and pair.given.zero == pair.taken.zero and largest <= float(np.finfo(np.float16).max)


def _codes(editor: Rewriter, changes: Changes, pair: Pair, x: ir.Value, offset: int, pads: tuple[int, ...]) -> ir.Value:
    """Bounds, Q and DQ of `x`, whose steps are those of the pair minus `offset`; what DQ makes of them."""
    name, anchor = pair.dequantize.outputs[0].name, pair.dequantize
    kind = pair.given.scale.dtype
    low, high = (step - offset for step in pair.steps)
    for op, code, limit in (("Max", low, -128), ("Min", high, 127)):
        if code != limit:
            bound = editor.constant(f"{name}.{op.lower()}", np.float32(code) * pair.given.step, kind)
            x = editor.before(anchor, op, [x, bound], f"{name}.{op.lower()}_bounded")
    zero = editor.constant(f"{name}.zero_point_x", 0, np.int8)
    scale = editor.constant(f"{name}.scale_x", pair.given.step, kind)
    codes = editor.before(anchor, QUANTIZE, [x, scale, zero], f"{name}.codes_x")
    codes.dtype = ir.DataType.INT8
    before = pair.dequantize.inputs[0]
    assert codes.name is not None and before is not None and before.name is not None
    tap = Tap(before.name, codes.name, offset + pair.given.zero, pads, -offset)
    changes.taps.append(tap)
    if pair.taken.step != pair.given.step:
        scale = editor.constant(f"{name}.scale_y", pair.taken.step, kind)
    return editor.before(anchor, DEQUANTIZE, [codes, scale, zero], f"{name}.levels")


def _shift(
    editor: Rewriter, constants: Constants, changes: Changes, weights: dict[ir.Node, Weights], pair: Pair
) -> None:
    """Codes around a middle level, once for each padding of the layers that read them."""
    low, high = pair.steps
    # Half a step rounds to the even code, so an even shift keeps ties where they were.
    offset = next((each for each in range(high - 127, low + 129) if each % 2 == 0), low + 128)
    values, made = pair.dequantize.outputs[0], dict[tuple[int, ...], ir.Value]()
    center = float(pair.taken.step) * offset
    for use in list(values.uses()):
        layer, index = use.node, use.idx
        is_layer = index == 0 and layer in weights and layer.op_type != "ConvTranspose"
        is_product = layer.op_type == "MatMul" and layer not in weights and _is_dequantized(layer.inputs[1 - index])
        pads = _explicit_pads(layer) if layer.op_type == "Conv" else ()
        if not (is_layer or is_product) or pads is None:
            continue
        key = pads if any(pads) else ()
        if key not in made:
            made[key] = _shifted(editor, changes, pair, offset, key)
        layer.replace_input_with(index, made[key])
        if pads:
            set_attribute(layer, "pads", [0] * len(pads))
            layer.attributes.pop("auto_pad", None)
        if is_layer:
            factor = attribute(layer, "alpha", 1.0) if layer.op_type == "Gemm" else 1.0
            _add_to_bias(editor, constants, layer, weights[layer], center * factor)
        else:
            _add_product(editor, layer, index, center)
    changes.did("8-bit ranges beside zero shifted onto int8, the biases behind them corrected")
    averages = [(use.node, use.idx) for use in values.uses() if _averages(use.node)]
    if averages:
        exact = _rounded(editor, constants, pair, f"{values.name}.exact")
        for node, index in averages:
            node.replace_input_with(index, exact)
    if values.uses() or values.is_graph_output():
        whole = made.get(()) or _shifted(editor, changes, pair, offset, ())
        middle = editor.floats(f"{values.name}.center_y", center)
        editor.replace(values, editor.before(pair.dequantize, "Add", [whole, middle], f"{values.name}.whole"))


def _shifted(editor: Rewriter, changes: Changes, pair: Pair, offset: int, pads: tuple[int, ...]) -> ir.Value:
    x, name, anchor = pair.quantize.inputs[0], pair.dequantize.outputs[0].name, pair.dequantize
    assert x is not None
    step = pair.given.step
    if pads:
        half = len(pads) // 2
        amounts = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        x = editor.before(anchor, "Pad", [x, editor.constant(f"{name}.pads", amounts, np.int64)], f"{name}.padded")
    producer = pair.quantize.inputs[0].producer() if pair.quantize.inputs[0] is not None else None
    between = producer is not None and _averages(producer)
    if between or (offset % 2 and math.frexp(float(step))[0] == 0.5):
        # Only averages of codes, and values on such scales, fall exactly between two codes.
        for op, operands in (("Div", [step]), ("Round", []), ("Mul", [step])):
            constants = [editor.floats(f"{name}.step", value) for value in operands]
            x = editor.before(anchor, op, [x, *constants], f"{name}.{op.lower()}")
    middle = editor.floats(f"{name}.center", float(step) * offset)
    x = editor.before(anchor, "Sub", [x, middle], f"{name}.centered")
    return _codes(editor, changes, pair, x, offset, pads)


def _explicit_pads(layer: ir.Node) -> tuple[int, ...] | None:
    """A convolution's padding in ONNX's order; None where it depends on the size of the image."""
    mode = attribute(layer, "auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return tuple(attribute(layer, "pads", ())) if mode == "NOTSET" else ()
    kernel, strides = attribute(layer, "kernel_shape", ()), attribute(layer, "strides", ())
    if not kernel or any(stride != 1 for stride in strides):
        return None
    dilations = attribute(layer, "dilations", None) or [1] * len(kernel)
    totals = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return tuple([*less, *more] if mode == "SAME_UPPER" else [*more, *less])


def _add_to_bias(editor: Rewriter, constants: Constants, layer: ir.Node, weights: Weights, center: float) -> None:
    """Add `center` times the sum of an output channel's weights to what a layer computes."""
    amount = center * weights.sums
    bias = layer.inputs[2] if layer.op_type == "Conv" and len(layer.inputs) > 2 else None
    stored = None if bias is None else bias.const_value
    if layer.op_type == "Conv" and (bias is None or stored is not None or constants.is_constant(bias.name)):
        known = 0.0 if bias is None else stored.numpy() if stored is not None else constants.value(bias.name or "")
        layer.resize_inputs(3)
        # In float64, rounded once: this sum must not add noise of its own.
        layer.replace_input_with(2, editor.floats(f"{layer.name}.bias", np.asarray(known, np.float64) + amount))
        return
    if layer.op_type == "Conv":
        amount = amount.reshape(1, -1, *[1] * (weights.codes.ndim - 2))
    editor.behind(layer.outputs[0], "Add", editor.floats(f"{layer.name}.bias_shift", amount))


def _add_product(editor: Rewriter, layer: ir.Node, index: int, center: float) -> None:
    """Add `center` times the sums of the other factor to a product of two activations."""
    other = layer.inputs[1 - index]
    name = f"{layer.name}.{index}"
    axes = editor.constant(f"{name}.summed_axis", [-2 if index == 0 else -1], np.int64)
    sums = editor.before(layer, "ReduceSum", [other, axes], f"{name}.sums", {"keepdims": 1})
    term = editor.before(layer, "Mul", [sums, editor.floats(f"{name}.center", center)], f"{name}.sums_scaled")
    editor.behind(layer.outputs[0], "Add", term)


def _is_dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Transpose", "Reshape", "Slice", "Identity"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == DEQUANTIZE


def _averages(node: ir.Node) -> bool:
    """Whether an operation puts codes exactly between two codes, where one bit decides how they are rounded."""
    resizes = node.op_type in ("Resize", "Upsample") and attribute(node, "mode", "nearest") != "nearest"
    return resizes or node.op_type in ("AveragePool", "GlobalAveragePool", "ReduceMean", "Mean")


def _emulate(editor: Rewriter, constants: Constants, changes: Changes, pair: Pair) -> None:
    """The same rounding in float arithmetic: exact, and nothing for TensorRT to refuse."""
    values = pair.dequantize.outputs[0]
    editor.replace(values, _rounded(editor, constants, pair, f"{values.name}"))
    why = "16-bit codes" if pair.high - pair.low > 255 else "one scale or zero point a channel"
    changes.leave(f"{pair.quantize.name}: {why}, so it is rounded in float and the layers behind it run in float")


def _rounded(editor: Rewriter, constants: Constants, pair: Pair, name: str) -> ir.Value:
    """What the DQ makes of a quantizer's input, computed in float to the same bits."""
    x, anchor = pair.quantize.inputs[0], pair.dequantize
    assert x is not None
    rank = constants.rank_of(x.name) or 4
    lows, highs = pair.low - pair.given.zero_point, pair.high - pair.given.zero_point
    drift = pair.given.zero_point - pair.taken.zero_point
    for op, operand in (
        ("Div", pair.given.scale),
        ("Round", None),
        ("Max", lows),
        ("Min", highs),
        ("Add", drift if np.any(drift) else ()),
        ("Mul", pair.taken.scale),
    ):
        if isinstance(operand, tuple):
            continue
        spread = None if operand is None else _spread(pair.given, operand, rank)
        operands = [] if spread is None else [editor.floats(f"{name}.{op.lower()}", spread)]
        x = editor.before(anchor, op, [x, *operands], f"{name}.{op.lower()}_result")
    return x


def _spread(parameters: Parameters, operand: np.ndarray, rank: int) -> np.ndarray:
    """One number a channel in the shape that broadcasts along the quantizer's axis."""
    if operand.size == 1:
        return operand.reshape(())
    return operand.reshape(-1, *[1] * (rank - 1 - parameters.axis % rank))
