"""Rules about the bounds that low-bit and asymmetric ranges need before (or after) Q.

A graph that forgot its bounds cannot be told from an 8-bit one, so only what is declared can be checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from odm_deploy.lowering.lint.finding import Hit, Severity, rule
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph
from odm_deploy.lowering.lint.operands import activation_quantizers

_CODES_OF_8_BITS = 255


@rule("range-needs-zero-point", Severity.SATURATES, fix="shift the values by s*(128-z) before Q and correct the bias")
def range_needs_zero_point(graph: QdqGraph) -> Iterator[Hit]:
    """A range of 255 steps that is not centered on zero, written as int8 with zero point 0, saturates on one side.

    It is what remains of an asymmetric 8-bit quantizer whose zero point was dropped. Measured on a trained EDSR: half
    of the output pixels change, by up to 23 of 255, and no tool says a word.
    """
    for node in activation_quantizers(graph):
        scale = graph.scale(node)
        if graph.code_type(node) != TensorProto.INT8 or scale is None or scale.size != 1:
            continue
        step = float(scale.reshape(-1)[0])
        low, high = _declared_range(graph, node.input[0])
        if not (step > 0 and math.isfinite(low) and math.isfinite(high)):
            continue
        spans_all_codes = abs((high - low) / step - _CODES_OF_8_BITS) < 0.01
        if spans_all_codes and (high / step > 128 or low / step < -129):
            representable = f"{-128 * step:g} .. {127 * step:g}"
            yield graph.name(node), f"range {low:g} .. {high:g} on codes that end at {representable}", ()


@rule("clip-before-quantize", Severity.WARNING, fix="write the bounds as Max and Min: they fold into the same kernel")
def clip_before_quantize(graph: QdqGraph) -> Iterator[Hit]:
    """Data-centre TensorRT has lost the upper bound of a Clip before Q (NVIDIA/TensorRT#4606, also #3938)."""
    for node in activation_quantizers(graph):
        before = graph.producers.get(node.input[0])
        if before is not None and before.op_type == "Clip" and len(before.input) > 2 and before.input[2]:
            yield graph.name(before), f"Clip with an upper bound before {graph.name(node)}", ()


@rule("integer-clip", Severity.WARNING, fix="clip the real values with Max and Min before Q instead")
def integer_clip(graph: QdqGraph) -> Iterator[Hit]:
    """A Clip of codes between Q and DQ (QCDQ) works on TensorRT-RTX; TensorRT's parser lists Clip as float-only."""
    for node in graph.of_type("Clip"):
        before = graph.producers.get(node.input[0])
        after = graph.readers[node.output[0]]
        if before is not None and before.op_type == QUANTIZE and any(one.op_type == DEQUANTIZE for one in after):
            yield graph.name(node), "Clip of integer codes between Q and DQ", ()


@rule("relu-half-range", Severity.INFO, fix="shift the values by -128 * scale before Q and correct the bias")
def relu_half_range(graph: QdqGraph) -> Iterator[Hit]:
    """After a ReLU half of the int8 codes are never used: 7 bits, not 8 (NVIDIA/TensorRT#2081)."""
    for node in activation_quantizers(graph):
        before = graph.producers.get(node.input[0])
        if before is not None and before.op_type == "Relu" and graph.code_type(node) == TensorProto.INT8:
            yield graph.name(node), f"codes below 0 are never used after {graph.name(before)}", ()


def _declared_range(graph: QdqGraph, tensor: str) -> tuple[float, float]:
    """The interval that the Min, Max, Clip and Relu nodes right before `tensor` confine it to."""
    low, high = -math.inf, math.inf
    node = graph.producers.get(tensor)
    while node is not None and node.op_type in ("Min", "Max", "Clip", "Relu"):
        tensor, node_low, node_high = _bounds(graph, node)
        low, high = max(low, node_low), min(high, node_high)
        node = graph.producers.get(tensor)
    return low, high


def _bounds(graph: QdqGraph, node: NodeProto) -> tuple[str, float, float]:
    """The tensor a bounding node confines, with its lower and upper bound."""
    if node.op_type == "Relu":
        return node.input[0], 0.0, math.inf
    if node.op_type == "Clip":
        bounds = [graph.scalar(name) if name else None for name in (*node.input[1:], "", "")]
        low, high = bounds[0], bounds[1]
        return node.input[0], -math.inf if low is None else low, math.inf if high is None else high
    limits = [value for value in map(graph.scalar, node.input) if value is not None]
    variable = next((name for name in node.input if not graph.is_constant(name)), node.input[0])
    if not limits:
        return variable, -math.inf, math.inf
    return (variable, -math.inf, min(limits)) if node.op_type == "Min" else (variable, max(limits), math.inf)
