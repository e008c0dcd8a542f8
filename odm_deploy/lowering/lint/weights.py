"""Rules about quantized weights and biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from odm_deploy.graphs.index import attribute
from odm_deploy.lowering.lint.finding import Hit, Severity, rule
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph, type_name
from odm_deploy.lowering.lint.operands import Layer, find_layers, layers_behind

_LEGAL_CODES = frozenset((TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.UNDEFINED))
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def _weight_dequantizers(graph: QdqGraph) -> Iterator[tuple[NodeProto, tuple[str, ...]]]:
    """DQ nodes of constants, with the layers they serve as a factor."""
    for node in graph.of_type(DEQUANTIZE):
        if graph.is_constant(node.input[0]):
            yield node, layers_behind(graph, node)


@rule("weight-type", Severity.ERROR, fix="store weight codes as int8; fewer bits are simply smaller int8 codes")
def weight_type(graph: QdqGraph) -> Iterator[Hit]:
    """Weight codes other than int8 (int4 for matrix products, fp8) do not parse: uint8, uint4, int2, 16 bits, ..."""
    for node, layers in _weight_dequantizers(graph):
        kind = graph.code_type(node)
        if kind not in _LEGAL_CODES and kind != TensorProto.INT32:
            yield graph.name(node), f"constants as {type_name(kind)}", layers


@rule("bias-int32", Severity.ERROR, fix="leave biases as float32: they are added after the integer product anyway")
def bias_int32(graph: QdqGraph) -> Iterator[Hit]:
    """A bias stored as int32 with a DequantizeLinear, as onnxruntime's quantizer writes it, does not parse."""
    for node, layers in _weight_dequantizers(graph):
        if graph.code_type(node) == TensorProto.INT32:
            after = tuple(graph.name(consumer) for consumer in graph.readers[node.output[0]])
            yield graph.name(node), "int32 codes behind a DequantizeLinear", layers or after


@rule("weight-zero-point", Severity.ERROR, fix="quantize weights symmetrically, zero point 0")
def weight_zero_point(graph: QdqGraph) -> Iterator[Hit]:
    """A zero point other than 0 on weights is a parse error, per channel as well as per tensor."""
    for node, layers in _weight_dequantizers(graph):
        zero_point = graph.zero_point(node)
        if zero_point is not None and np.any(zero_point.astype(np.float64) != 0):
            yield graph.name(node), "weights with a zero point other than 0", layers


@rule("convolution-operand-types", Severity.ERROR, fix="store both as int8; 4-bit weights are small int8 codes")
def convolution_operand_types(graph: QdqGraph) -> Iterator[Hit]:
    """A convolution needs weights and activations of the same type: int4 or fp8 weights with int8 input do not build.

    Matrix products take int4 weights with int8 activations: they are widened when the engine is built.
    """
    for layer in find_layers(graph):
        if layer.node.op_type != "Conv" or not (layer.activation.quantized and layer.weight.quantized):
            continue
        kinds = {graph.code_type(node) for node in (*layer.activation.dequantizers, *layer.weight.dequantizers)}
        # uint8 is read as int8; anything illegal in itself has its own rule.
        kinds = {TensorProto.INT8 if kind == TensorProto.UINT8 else kind for kind in kinds}
        if len(kinds) > 1 and kinds <= _LEGAL_CODES - {TensorProto.UNDEFINED}:
            names = " and ".join(sorted(map(type_name, kinds)))
            yield layer.name, f"{names} meet in one convolution", (layer.name,)


@rule(
    "weight-scale-axis",
    Severity.SILENT_FLOAT,
    fix="one scale an output channel (axis 0 of Conv weights, the column axis of a matrix), or one for the tensor",
)
def weight_scale_axis(graph: QdqGraph) -> Iterator[Hit]:
    """Weight scales along anything but the output channels cannot be undone after an integer product: float, silently.

    For convolutions that is any axis but 0; for matrix products the axis that is summed over.
    """
    for layer in find_layers(graph):
        if not layer.weight_is_constant or layer.node.op_type == "ConvTranspose":
            continue
        for node in layer.weight.dequantizers:
            shape = graph.shape(node.input[1])
            if shape is None or len(shape) != 1 or shape[0] == 1:
                continue
            axis = _axis(graph, node)
            if axis is not None and _is_reduced(graph, layer, node, axis):
                yield graph.name(node), f"{shape[0]} scales along axis {axis} of the weights", (layer.name,)


@rule(
    "weight-codes-computed",
    Severity.ERROR,
    fix="store the codes as the layer needs them, right before DequantizeLinear",
)
def weight_codes_computed(graph: QdqGraph) -> Iterator[Hit]:
    """Stored int8 codes may feed a DequantizeLinear only: with so much as an Identity between, it does not build."""
    for node, layers in _weight_dequantizers(graph):
        source = graph.producers.get(node.input[0])
        if source is None or source.op_type in ("Constant", "Cast", QUANTIZE):
            continue
        yield graph.name(node), f"{source.op_type} between stored codes and {graph.name(node)}", layers


@rule("weight-concat", Severity.ERROR, fix="concatenate the codes and the scales instead")
def weight_concat(graph: QdqGraph) -> Iterator[Hit]:
    """Weights that are joined behind their DequantizeLinear nodes crash the compiler of the builder."""
    for layer in find_layers(graph):
        if layer.weight_is_constant and layer.weight.concats and layer.activation.quantized:
            yield graph.name(layer.weight.concats[0]), f"Concat in the weights of {layer.name}", (layer.name,)


@rule("blocked-weights", Severity.ERROR, fix="one scale an output channel (axis 0) or one for the tensor")
def blocked_weights(graph: QdqGraph) -> Iterator[Hit]:
    """Blocked quantization (several scales along the summed axis) of convolution weights does not parse."""
    for layer in find_layers(graph):
        for node in layer.weight.dequantizers:
            shape = graph.shape(node.input[1])
            if layer.node.op_type in _CONVOLUTIONS and shape is not None and len(shape) > 1:
                yield graph.name(node), f"scales of shape {list(shape)} on convolution weights", (layer.name,)


def _axis(graph: QdqGraph, node: NodeProto) -> int | None:
    """The axis of a per-axis DQ node, from the front; None where a negative one cannot be resolved."""
    axis = int(attribute(node, "axis", 1))
    if axis >= 0:
        return axis
    shape = graph.shape(node.input[0])
    return None if shape is None else axis + len(shape)


def _is_reduced(graph: QdqGraph, layer: Layer, node: NodeProto, axis: int) -> bool:
    """Whether the layer sums over `axis` of the weights that `node` dequantizes."""
    tensor = node.output[0]
    # Follow the axis through Transpose nodes to what the layer sees. Reshapes end the analysis.
    while tensor != layer.weight.tensor:
        following = graph.readers[tensor]
        if len(following) != 1 or following[0].op_type not in ("Transpose", "Cast", "Identity"):
            return False
        if following[0].op_type == "Transpose":
            rank = len(graph.shape(node.input[0]) or ())
            axis = list(attribute(following[0], "perm", range(rank)[::-1])).index(axis)
        tensor = following[0].output[0]
    if layer.node.op_type == "Conv":
        return axis != 0
    rank = len(graph.shape(node.input[0]) or ())
    transposed = bool(attribute(layer.node, "transB" if layer.weight_index else "transA", 0))
    # The right factor is summed over its rows, the left one over its columns.
    summed = rank - 2 if bool(layer.weight_index) != transposed else rank - 1
    return rank >= 2 and axis == summed
