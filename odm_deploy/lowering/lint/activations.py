"""Rules about quantizing activations: types, zero points, granularity, ranges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from odm_deploy.lowering.lint.finding import Hit, Severity, rule
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QdqGraph, type_name
from odm_deploy.lowering.lint.operands import activation_quantizers, dequantizers_of, layers_behind

_LEGAL_CODES = frozenset((TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT8E4M3FN))


def _layers_after(graph: QdqGraph, quantizer: NodeProto) -> tuple[str, ...]:
    return layers_behind(graph, *dequantizers_of(graph, quantizer))


@rule(
    "activation-zero-point",
    Severity.ERROR,
    fix="use int8 with zero point 0; up to 7 bits the codes -z .. 2^b-1-z fit it exactly, at 8 bits shift the values "
    "by s*(128-z) before Q and correct the bias",
)
def activation_zero_point(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT quantizes symmetrically: a zero point other than 0 is a parse error (NVIDIA/TensorRT#2774, #4698)."""
    for node in activation_quantizers(graph):
        zero_point = graph.zero_point(node)
        if zero_point is not None and np.any(zero_point.astype(np.int64) != 0):
            values = np.unique(zero_point.astype(np.int64)).tolist()
            shown = values[0] if len(values) == 1 else values
            yield graph.name(node), f"zero point {shown}", _layers_after(graph, node)


@rule("activation-uint8", Severity.SATURATES, fix="give Q and DQ an int8 zero point 0 and a scale of amax / 127")
def activation_uint8(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT reads uint8 codes with zero point 0 as int8, so everything above 127 * scale saturates.

    The ONNX default is uint8, so leaving the zero point out does the same. With the zero point written down
    TensorRT-RTX 1.7 at least warns; with none it is silent.
    """
    for node in activation_quantizers(graph):
        if graph.code_type(node) == TensorProto.UINT8:
            given = len(node.input) > 2 and bool(node.input[2])
            if given and np.any(graph.zero_point(node)):
                continue  # refused altogether: activation-zero-point
            scale = graph.scale(node)
            limit = "127 * scale" if scale is None or scale.size != 1 else f"{127 * float(scale.reshape(-1)[0]):g}"
            how = "uint8 zero point 0" if given else "no zero point, and the ONNX default is uint8"
            yield graph.name(node), f"{how}: values above {limit} saturate", _layers_after(graph, node)


@rule("activation-type", Severity.ERROR, fix="quantize activations to int8; fewer bits are int8 codes within bounds")
def activation_type(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT has int8 (and fp8) activations only: 4-bit, 2-bit and 16-bit codes do not parse or do not build."""
    for node in activation_quantizers(graph):
        kind = graph.code_type(node)
        if kind not in _LEGAL_CODES and kind != TensorProto.UNDEFINED:
            yield graph.name(node), f"activations as {type_name(kind)}", _layers_after(graph, node)


@rule("codes-from-outside", Severity.ERROR, fix="take float (or a Cast of the uint8 image) into the graph, then Q int8")
def codes_from_outside(graph: QdqGraph) -> Iterator[Hit]:
    """A DequantizeLinear straight from a uint8 graph input is a parse error: TensorRT knows no uint8 codes."""
    for node in graph.of_type(DEQUANTIZE):
        source = node.input[0]
        if graph.is_constant(source) or graph.producers.get(source) is not None:
            continue
        kind = graph.element_type(source)
        if kind not in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
            yield graph.name(node), f"dequantizes the {type_name(kind)} graph input {source!r}", ()


@rule("activation-per-channel", Severity.SILENT_FLOAT, fix="use one scale for the whole tensor")
def activation_per_channel(graph: QdqGraph) -> Iterator[Hit]:
    """With one scale a channel on its input a layer runs in float: an integer product cannot undo them afterwards."""
    for node in activation_quantizers(graph):
        scale = graph.scale(node)
        if scale is not None and scale.size > 1:
            yield graph.name(node), f"{scale.size} scales on an activation", _layers_after(graph, node)


@rule("scale-shape", Severity.SILENT_FLOAT, fix="make the scale and the zero point scalars (shape [])")
def scale_shape(graph: QdqGraph) -> Iterator[Hit]:
    """An activation scale of shape [1] is taken for per-channel quantization and convolutions behind it run in float.

    Weights and matrix products do not mind (TensorRT-RTX 1.7 layer table).
    """
    for node in activation_quantizers(graph):
        after = list(dequantizers_of(graph, node))
        behind = layers_behind(graph, *after, op_type="Conv")
        at_fault = next((each for each in (node, *after) if graph.shape(each.input[1]) == (1,)), None)
        if at_fault is not None and behind:
            yield graph.name(at_fault), "scale of shape [1] instead of a scalar", behind


@rule("scale-precision", Severity.WARNING, fix="store activation scales as float32 and Cast around Q and DQ")
def scale_precision(graph: QdqGraph) -> Iterator[Hit]:
    """Activation scales rounded to 16 bits flip codes: 0.4 to 0.7 % of them at 8 bits, measured against float32."""
    for node in activation_quantizers(graph):
        kind = graph.element_type(node.input[1])
        if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            yield graph.name(node), f"scale stored as {type_name(kind)}", _layers_after(graph, node)
