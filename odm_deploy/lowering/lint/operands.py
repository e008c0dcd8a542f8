"""Layers that multiply (convolutions, matrix products) and where each of their operands is dequantized.

TensorRT runs such a layer as int8 when both operands come from a DequantizeLinear, possibly through operations that
only move values around. Which operations those are was found by building graphs with TensorRT-RTX 1.7 and reading the
layer table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from weakref import WeakKeyDictionary

from onnx import NodeProto

from odm_deploy.graphs.index import attribute
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph

LAYER_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Between DQ and a layer these leave it int8: they move values, or change the sign or scale of all of them alike.
_MOVING = ("DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze")
_TRANSPARENT = frozenset(
    (*_MOVING, "Tile", "Transpose", "Unsqueeze", "Concat", "MaxPool", "Cast", "Dropout", "Identity", "Abs", "Neg")
)
# In constants the builder folds fewer of them.
_TRANSPARENT_TO_WEIGHTS = _TRANSPARENT - {"Abs", "Neg", "MaxPool"}
_SCALING = frozenset(("Mul", "Div"))

# Every rule asks for the layers; tracing them once is enough.
_FOUND: WeakKeyDictionary[QdqGraph, list[Layer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Operand:
    """One of the two inputs a layer multiplies, followed back to where its values come from."""

    tensor: str
    dequantizers: tuple[NodeProto, ...]
    """DQ nodes it comes from; several after a Concat."""
    blockers: tuple[NodeProto, ...]
    """Operations on its way that keep TensorRT from using codes, each with a DQ before it."""
    concats: tuple[NodeProto, ...]
    """Concat nodes on its way."""
    loose_ends: int
    """Paths that end at a float: a graph input, a float initializer or a blocker."""

    @property
    def quantized(self) -> bool:
        """Whether every value reaches the layer as a dequantized code."""
        return bool(self.dequantizers) and not self.loose_ends


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product."""

    node: NodeProto
    name: str
    activation: Operand
    weight: Operand
    """The constant operand; the second one where neither is constant."""
    weight_index: int
    """Which input of the node `weight` is."""
    weight_is_constant: bool

    @property
    def quantized(self) -> bool:
        """Whether anybody tried to quantize it: one operand is dequantized just before."""
        return self.activation.quantized or self.weight.quantized


def find_layers(graph: QdqGraph) -> list[Layer]:
    """All layers of a graph, in graph order."""
    if graph not in _FOUND:
        _FOUND[graph] = [_layer(graph, node) for node in graph.of_type(*LAYER_TYPES)]
    return _FOUND[graph]


def layers_behind(graph: QdqGraph, *dequantizers: NodeProto, op_type: str | None = None) -> tuple[str, ...]:
    """Names of the layers, of one type or any, that have an operand from one of `dequantizers`."""
    names = [
        layer.name
        for dequantizer in dequantizers
        for layer in find_layers(graph)
        if op_type in (None, layer.node.op_type)
        and any(dequantizer is node for node in (*layer.activation.dequantizers, *layer.weight.dequantizers))
    ]
    return tuple(dict.fromkeys(names))


def activation_quantizers(graph: QdqGraph) -> Iterator[NodeProto]:
    """Q nodes that run at inference; those on constants are folded away by the builder."""
    return (node for node in graph.of_type(QUANTIZE) if not graph.is_constant(node.input[0]))


def dequantizers_of(graph: QdqGraph, quantizer: NodeProto) -> Iterator[NodeProto]:
    """DQ nodes that read the codes of `quantizer`, directly or through an integer Clip."""
    for node in graph.readers[quantizer.output[0]]:
        if node.op_type == DEQUANTIZE:
            yield node
        elif node.op_type == "Clip":
            yield from (after for after in graph.readers[node.output[0]] if after.op_type == DEQUANTIZE)


def trace(graph: QdqGraph, tensor: str) -> Operand:
    """Follow `tensor` back to its dequantizers."""
    dequantizers: dict[int, NodeProto] = {}
    blockers: dict[int, NodeProto] = {}
    concats: dict[int, NodeProto] = {}
    loose_ends = 0
    for node in _upstream(graph, [tensor]):
        if node is None:
            loose_ends += 1
        elif node.op_type == DEQUANTIZE:
            dequantizers[id(node)] = node
        elif _is_transparent(graph, node):
            if node.op_type == "Concat":
                concats[id(node)] = node
        else:
            loose_ends += 1
            # A layer in between is no obstacle to remove: its float output is simply not quantized.
            if node.op_type not in LAYER_TYPES and _reads_codes(graph, node, constant=graph.is_constant(tensor)):
                blockers[id(node)] = node
    found = tuple(dequantizers.values()), tuple(blockers.values()), tuple(concats.values())
    return Operand(tensor, *found, loose_ends)


def _upstream(graph: QdqGraph, tensors: list[str]) -> Iterator[NodeProto | None]:
    """The nodes on the way back from `tensors`, up to the first that is not transparent; None where no node is."""
    pending, seen = list(tensors), set(tensors)
    while pending:
        node = graph.producers.get(pending.pop())
        yield node
        if node is not None and _is_transparent(graph, node):
            before = [name for name in _data_inputs(graph, node) if name not in seen]
            seen.update(before)
            pending += before


def _is_transparent(graph: QdqGraph, node: NodeProto) -> bool:
    """Whether a layer behind this operation still runs as int8."""
    if node.op_type == "Pad":
        # Padding with a number, even with zero, is done in float; repeating border values is not.
        return attribute(node, "mode", b"constant") != b"constant"
    constant = graph.is_constant(node.output[0])
    if node.op_type in _SCALING:
        return _scales_codes(graph, node, constant=constant)
    return node.op_type in (_TRANSPARENT_TO_WEIGHTS if constant else _TRANSPARENT)


def _scales_codes(graph: QdqGraph, node: NodeProto, *, constant: bool) -> bool:
    """Whether a Mul or Div folds into the scale: by one number, or one an output channel of convolution weights."""
    index = _data_index(graph, node)
    if index is None or (node.op_type == "Div" and index != 0):
        return False
    shape = graph.shape(node.input[1 - index])
    return shape is not None and prod(shape[1 if constant and len(shape) == 4 else 0 :]) == 1


def _data_index(graph: QdqGraph, node: NodeProto) -> int | None:
    """Which operand of a Mul or Div carries the values, the other being a constant; None where neither or both do."""
    data = [
        index for index, name in enumerate(node.input) if not graph.is_constant(name) or _is_dequantized(graph, name)
    ]
    return data[0] if len(data) == 1 else None


def _is_dequantized(graph: QdqGraph, tensor: str) -> bool:
    """Whether any dequantized code goes into a constant."""
    pending, seen = [tensor], {tensor}
    while pending:
        node = graph.producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type == DEQUANTIZE:
            return True
        new = [name for name in node.input if name and name not in seen]
        seen.update(new)
        pending += new
    return False


def _data_inputs(graph: QdqGraph, node: NodeProto) -> list[str]:
    """The inputs of a transparent operation that carry values, not indices, shapes or factors."""
    if node.op_type == "Concat":
        return list(node.input)
    if node.op_type in _SCALING:
        return [node.input[_data_index(graph, node) or 0]]
    return [node.input[0]]


def _reads_codes(graph: QdqGraph, blocker: NodeProto, *, constant: bool) -> bool:
    """Whether a DQ (of weights if `constant`, else of activations) lies before `blocker`."""
    return any(
        node is not None and node.op_type == DEQUANTIZE and graph.is_constant(node.output[0]) == constant
        for node in _upstream(graph, [name for name in blocker.input if name])
    )


def _layer(graph: QdqGraph, node: NodeProto) -> Layer:
    # A matrix product may have its constant on either side.
    first_is_weight = graph.is_constant(node.input[0]) and not graph.is_constant(node.input[1])
    weight_index = 0 if first_is_weight else 1
    weight = node.input[weight_index]
    return Layer(
        node=node,
        name=graph.name(node),
        activation=trace(graph, node.input[1 - weight_index]),
        weight=trace(graph, weight),
        weight_index=weight_index,
        weight_is_constant=graph.is_constant(weight),
    )
