"""Rules about how Q and DQ nodes are placed, and about the graph as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx import TensorProto

from odm_deploy.graphs.index import attribute
from odm_deploy.lowering.lint.finding import Hit, Severity, rule
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph
from odm_deploy.lowering.lint.operands import Layer, Operand, find_layers
from odm_deploy.progress import counted

NEWEST_COMMON_OPSET = 20

NARROW_CHANNELS = 4
"""Up to that many input channels TensorRT-RTX 1.7 multiplies a single pixel in float."""

_QLINEAR = ("Conv", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")
_QLINEAR_OPERATORS = tuple(f"QLinear{name}" for name in _QLINEAR)
_INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantizeLinear", *_QLINEAR_OPERATORS)

# Others have rules of their own about these.
_READERS_OF_BYTES = ("Cast", QUANTIZE, DEQUANTIZE, *_INTEGER_OPERATORS)


@rule("half-quantized", Severity.SILENT_FLOAT, fix="quantize the other operand too, or neither")
def half_quantized(graph: QdqGraph) -> Iterator[Hit]:
    """A layer with Q/DQ on its weights only, or on its activations only, runs in float."""
    for layer in find_layers(graph):
        if layer.node.op_type == "ConvTranspose" or layer.activation.blockers or layer.weight.blockers:
            continue
        if layer.weight.quantized and not layer.activation.dequantizers:
            yield layer.name, "weights are quantized, its input is not", (layer.name,)
        elif layer.activation.quantized and not layer.weight.dequantizers:
            what = "weights are not" if layer.weight_is_constant else "the other factor is not"
            yield layer.name, f"input is quantized, {what}", (layer.name,)


@rule(
    "operation-after-dequantize", Severity.SILENT_FLOAT, fix="move the operation before Q, so that DQ feeds the layer"
)
def operation_after_dequantize(graph: QdqGraph) -> Iterator[Hit]:
    """An operation between DQ and a layer that changes values unevenly leaves the layer in float.

    Add, ReLU, Clip, Resize, average pooling and padding with a number do, even with zero; operations that only move
    values, and Mul by a scalar, do not.
    """
    for layer, operand in _operands_beside_codes(graph):
        for node in operand.blockers if layer.node.op_type != "ConvTranspose" else ():
            yield graph.name(node), f"{node.op_type} between DequantizeLinear and {layer.name}", (layer.name,)


@rule("concat-scales", Severity.SILENT_FLOAT, fix="quantize once after the Concat, or give its inputs one common scale")
def concat_scales(graph: QdqGraph) -> Iterator[Hit]:
    """A Concat of tensors with different scales, or of quantized and float ones, leaves the layer behind in float."""
    for layer, operand in _operands_beside_codes(graph):
        if problem := _concat_problem(graph, operand):
            yield graph.name(operand.concats[0]), f"{problem} reach {layer.name}", (layer.name,)


@rule(
    "transposed-convolution",
    Severity.SILENT_FLOAT,
    fix="use a convolution and DepthToSpace (pixel shuffle), or leave it float",
)
def transposed_convolution(graph: QdqGraph) -> Iterator[Hit]:
    """ConvTranspose never runs as int8, however it is quantized."""
    for layer in find_layers(graph):
        if layer.node.op_type == "ConvTranspose" and layer.quantized:
            yield layer.name, "quantized ConvTranspose", (layer.name,)


@rule(
    "narrow-attention",
    Severity.INFO,
    fix="give it more than 4 input channels (zero weights change nothing), or leave it float: it is tiny",
)
def narrow_attention(graph: QdqGraph) -> Iterator[Hit]:
    """A 1x1 convolution of up to 4 channels on one pixel, as behind the pooling of channel attention, stays float.

    So it is in engines for one image at a time; with room for a batch the builder takes int8. One pixel is none of the
    work, so nothing is refused for it, by `inspect` either.
    """
    for layer in find_layers(graph):
        weights = graph.shape_of(layer.weight.tensor)
        image = graph.shape_of(layer.activation.tensor)
        if layer.node.op_type != "Conv" or not layer.quantized or image[2:] != (1, 1) or weights[2:] != (1, 1):
            continue
        if (image[0] or 1) > 1:
            continue
        channels = weights[1]
        if channels is not None and channels <= NARROW_CHANNELS and image[1] == channels:
            yield layer.name, f"{counted(channels, 'channel')} on a single pixel", (layer.name,)


@rule("integer-operators", Severity.ERROR, fix="export in the QDQ format (onnxruntime: quant_format=QuantFormat.QDQ)")
def integer_operators(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT parses the QDQ format only: operators that compute on integers themselves are refused."""
    for node in graph.of_type(*_INTEGER_OPERATORS):
        yield graph.name(node), f"operator {node.op_type}", (graph.name(node),)


@rule("uint8-inside", Severity.ERROR, fix="cast to float first, and let a uint8 output come straight from a Cast")
def uint8_inside(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT knows uint8 at the edges of a graph only: inputs that feed a Cast, and outputs that come from one."""
    images = {value.name for value in graph.model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    images |= {node.output[0] for node in graph.of_type("Cast") if attribute(node, "to") == TensorProto.UINT8}
    for node in graph.model.graph.node:
        read = [name for name in node.input if name in images]
        if read and node.op_type not in _READERS_OF_BYTES:
            yield graph.name(node), f"{node.op_type} of the uint8 tensor {read[0]}", ()


@rule("opset", Severity.WARNING, fix=f"export with opset {NEWEST_COMMON_OPSET}")
def opset(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT 10.0 parses up to opset 20, TensorRT 11 up to 25; onnxruntime has a bug with int8 DQ at 21 and later."""
    if graph.opset > NEWEST_COMMON_OPSET and next(graph.of_type(QUANTIZE, DEQUANTIZE), None) is not None:
        yield "", f"opset {graph.opset}", ()


@rule("duplicate-quantizers", Severity.ERROR, fix="give every node a name of its own, and inline local functions")
def duplicate_quantizers(graph: QdqGraph) -> Iterator[Hit]:
    """Q and DQ nodes that share a name do not parse, nor does a local function with Q or DQ nodes that runs twice."""
    named = Counter(node.name for node in graph.of_type(QUANTIZE, DEQUANTIZE) if node.name)
    for name, count in named.items():
        if count > 1:
            yield name, f"{count} Q or DQ nodes have this name", ()
    calls = Counter((node.domain, node.op_type) for node in graph.original.graph.node)
    for function in graph.original.functions:
        count = calls[function.domain, function.name]
        if count > 1 and any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in function.node):
            yield function.name, f"the function {function.name} is called {count} times", ()


@rule("duplicate-names", Severity.WARNING, fix="give every node a name of its own")
def duplicate_names(graph: QdqGraph) -> Iterator[Hit]:
    """Layers that share a name cannot be told apart in an engine, so nobody can say which of them run as int8."""
    counts = Counter(layer.name for layer in find_layers(graph))
    for name, count in counts.items():
        if count > 1:
            yield name, f"{count} layers have this name", (name,)


def _operands_beside_codes(graph: QdqGraph) -> Iterator[tuple[Layer, Operand]]:
    """Every layer's operands whose other operand is quantized."""
    for layer in find_layers(graph):
        for operand, other in ((layer.activation, layer.weight), (layer.weight, layer.activation)):
            if other.quantized:
                yield layer, operand


def _concat_problem(graph: QdqGraph, operand: Operand) -> str:
    """What about the Concats of an operand keeps it from being one tensor of codes; empty if nothing."""
    if not operand.concats or not operand.dequantizers or operand.blockers:
        return ""
    if operand.loose_ends:
        return "quantized and float tensors"
    scales = [graph.scale(node) for node in operand.dequantizers]
    known = sorted({float(scale.reshape(-1)[0]) for scale in scales if scale is not None and scale.size == 1})
    return f"scales {', '.join(f'{scale:g}' for scale in known)}" if len(known) > 1 else ""
