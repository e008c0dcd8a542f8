"""What ONNX Runtime rounds, computes wrongly or does not run."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import constant_array
from odm_deploy.lowering.quirks.walking import readers_of

_POOLINGS = {"AveragePool", "MaxPool"}
_PASSED = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""What ONNX Runtime 1.31 moves quantizers through, towards the layers on both sides."""
_LARGEST_BIAS_ERROR = 0.01
"""Steps of the grid behind a layer; `verify` takes less for rounding."""


def would_lose_weights(node: ir.Node) -> bool:
    """Whether ONNX Runtime would round the float weights of a layer, unless another operator stands behind it.

    Between DequantizeLinear and QuantizeLinear, with nothing but ReLU and Clip before the latter, ONNX Runtime 1.31 at
    its defaults makes 8-bit integers of float weights, with one scale for all of them.
    """
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or constant_array(node.inputs[1]) is None:
        return False
    return _is_between_codes(node, {"Relu", "Clip"})


def would_round_bias(node: ir.Node) -> bool:
    """Whether ONNX Runtime would move the codes behind a layer by more than a hundredth of a step, its bias rounded.

    ONNX Runtime 1.31 makes one operator of a convolution or matrix product of codes and the quantizer behind it, which
    counts the bias in whole products of both scales. Codes of 2 or 3 bits have large ones, up to a tenth of a step of
    an 8-bit grid behind them, where nothing has rounded the bias before. A bound keeps them apart.
    """
    if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
        return False
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    source, readers = _quantizer_before(node), _quantizers_behind(node, {"Relu", "Clip"})
    bias = constant_array(node.inputs[2])
    if bias is None or source is None or not readers or weight is None or weight.op_type != "DequantizeLinear":
        return False
    scales = [constant_array(quantizer.inputs[1]) for quantizer in (source, weight, *readers)]
    of_input, of_weight, *of_outputs = (
        np.float64(0) if scale is None else scale.astype(np.float64) for scale in scales
    )
    unit = of_input * of_weight
    if not np.all(unit) or not all(map(np.all, of_outputs)):
        return False
    exact = bias.astype(np.float64)
    rounded = np.rint(exact / unit) * unit
    return any((np.abs(rounded - exact) / scale).max() > _LARGEST_BIAS_ERROR for scale in of_outputs)


def would_look_up(node: ir.Node) -> bool:
    """Whether ONNX Runtime would take a softmax from a table of 256 numbers, unless another operator stands behind it.

    That is what ONNX Runtime 1.31 makes of one between DequantizeLinear and QuantizeLinear, a twentieth of a step off.
    """
    return node.op_type == "Softmax" and _is_between_codes(node)


def may_shrink_smoothly(node: ir.Node) -> bool:
    """Whether a bicubic resizing may make something smaller, of which ONNX Runtime can fail to run it.

    ONNX Runtime 1.31 computes integer convolutions with channels last, moves the transpositions from there through a
    Resize, and then refuses factors below 1 of the bicubic kind. A reshape to the shape it has keeps them apart.
    """
    kind = node.attributes.get("mode") if node.op_type == "Resize" else None
    if kind is None or kind.as_string() != "cubic":
        return False
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return scales is None or float(scales.astype(np.float64).min(initial=1.0)) < 1.0


def takes_in_padding(node: ir.Node) -> bool:
    """Whether ONNX Runtime would make a constant that is padded before a pooling the pooling's own, which is none.

    ONNX Runtime 1.31 lets the largest of a window be that of the image's values only, though zeros were padded. Where
    the number of windows is rounded up, a last one of averages may begin in what was padded, and is left out.
    """
    padding = node.inputs[0].producer() if node.op_type in _POOLINGS and node.inputs[0] is not None else None
    rounds_up = "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int() == 1
    return padding is not None and padding.op_type == "Pad" and (rounds_up or node.op_type == "MaxPool")


def _is_between_codes(node: ir.Node, through: Set[str] = frozenset()) -> bool:
    """Whether `node` has a quantizer on both sides, behind it perhaps after operators of the kinds `through`."""
    return _quantizer_before(node) is not None and bool(_quantizers_behind(node, through))


def _quantizer_before(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear whose values `node` reads first, be they moved."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    while producer is not None and producer.op_type in _PASSED:
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _quantizers_behind(node: ir.Node, through: Set[str]) -> list[ir.Node]:
    """The QuantizeLinears that read what `node` gives, be it moved, after operators of the kinds `through`.

    Where something else reads it, too, such as a sum, ONNX Runtime makes no one operator of the two, but does once
    `verify` has cut that off to compare layers.
    """
    return [reader for reader in readers_of(node, _PASSED | through) if reader.op_type == "QuantizeLinear"]
