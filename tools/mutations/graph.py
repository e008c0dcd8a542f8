"""Places in a QDQ graph, whatever dialect it is written in, and small edits at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Place = TypeVar("Place")

LAYERS = ("Conv", "Gemm", "MatMul")
_BOUNDS = ("Max", "Min", "Clip")
_WALK = 6
"""So many operators stand between a quantizer's source and its codes at most."""


class NoSuchPlaceError(Exception):
    """A graph or a manifest has no place for a fault."""


def middle(found: Sequence[Place]) -> Place:
    """The one in the middle. Raises NoSuchPlaceError where there is none."""
    if not found:
        raise NoSuchPlaceError
    return found[len(found) // 2]


class Graph:
    """A graph to be changed in place, with its look-ups always fresh."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = model.graph.node
        self._made = 0

    @property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that computes a tensor."""
        return {name: node for node in self.nodes for name in node.output}

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def quantizers(self) -> list[onnx.NodeProto]:
        """The QuantizeLinear nodes of activations, in the order of the graph."""
        constants = self.constants
        return [node for node in self.nodes if node.op_type == "QuantizeLinear" and node.input[0] not in constants]

    def quantizer(self) -> onnx.NodeProto:
        """The one in the middle of the graph. Raises NoSuchPlaceError."""
        return middle(self.quantizers())

    def bounds(self, quantizer: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]]:
        """Operators that bound a quantizer's values or codes, and which operand is the bound; lower bounds first."""
        found: list[tuple[onnx.NodeProto, int]] = []
        producers, constants = self.producers, self.constants
        node = producers.get(quantizer.input[0])
        behind = self.readers(quantizer.output[0])
        candidates = [reader for reader in behind if reader.op_type == "Clip"]
        for _ in range(_WALK):
            if node is None or node.op_type not in _BOUNDS:
                break
            candidates.append(node)
            node = producers.get(node.input[0])
        for each in candidates:
            found += [(each, slot) for slot, name in enumerate(each.input) if slot and name in constants]
        return sorted(found, key=lambda place: float(self.value(place[0].input[place[1]]).min()))

    def quantized_layers(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Convolutions and products whose weights are codes, and the DequantizeLinear of these."""
        pairs = [(node, self.weight_quantizer(node)) for node in self.nodes if node.op_type in LAYERS]
        return [(layer, weights) for layer, weights in pairs if weights is not None]

    def float_layers(self) -> list[onnx.NodeProto]:
        """Those whose weights are floats."""
        constants = self.constants
        return [
            node for node in self.nodes if node.op_type in LAYERS and any(name in constants for name in node.input[:2])
        ]

    def weight_quantizer(self, layer: onnx.NodeProto) -> onnx.NodeProto | None:
        """The DequantizeLinear of a layer's weights, through a transpose if there is one."""
        producers, constants = self.producers, self.constants
        for name in layer.input[:2]:
            node = producers.get(name)
            while node is not None and node.op_type == "Transpose":
                node = producers.get(node.input[0])
            if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in constants:
                return node
        return None

    def value(self, name: str) -> NDArray[Any]:
        """A copy of an initializer's array."""
        return numpy_helper.to_array(self.constants[name]).copy()

    def store(self, name: str, array: NDArray[Any]) -> None:
        """Give an initializer another value of the same type, as near as that has it."""
        tensor = self.constants[name]
        kind = numpy_helper.to_array(tensor).dtype
        if kind.kind in "iu":
            array = np.clip(array, np.iinfo(kind).min, np.iinfo(kind).max)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, kind), name))

    def new(self, array: npt.ArrayLike, hint: str = "mutant") -> str:
        """A new initializer; returns its name."""
        name = f"{hint}.{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def own(self, node: onnx.NodeProto, slot: int) -> str:
        """Make the constant in one operand of a node its own, so that a change stays there; returns its name."""
        node.input[slot] = self.new(self.value(node.input[slot]), node.input[slot])
        return node.input[slot]

    def before(self, node: onnx.NodeProto, slot: int, steps: list[tuple[str, list[str], dict[str, Any]]]) -> None:
        """Put operators, each with further operands and attributes, between a node and one of its inputs."""
        place = list(self.nodes).index(node)
        source = node.input[slot]
        for op, operands, attributes in steps:
            result = f"mutant.{len(self.nodes)}"
            self.nodes.insert(
                place, helper.make_node(op, [source, *operands], [result], f"{result}/{op}", **attributes)
            )
            source, place = result, place + 1
        node.input[slot] = source

    def step_behind(self, tensor: str) -> float:
        """The scale of the quantizer that a tensor enters or comes from; 1 where none is near."""
        producer = self.producers.get(tensor)
        if producer is not None and producer.op_type == "DequantizeLinear":
            return float(self.value(producer.input[1]).max())
        for _ in range(_WALK):
            readers = self.readers(tensor)
            if not readers:
                break
            if readers[0].op_type == "QuantizeLinear":
                return float(self.value(readers[0].input[1]).max())
            tensor = readers[0].output[0]
        return 1.0

    def bypass(self, node: onnx.NodeProto, source: str) -> None:
        """Remove a node; whoever read its first output reads `source` instead."""
        for reader in self.nodes:
            for slot, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[slot] = source
        for output in self.model.graph.output:
            if output.name == node.output[0]:
                # The graph's own output keeps its name.
                self.nodes.insert(
                    list(self.nodes).index(node), helper.make_node("Identity", [source], [output.name], "mutant/out")
                )
        self.nodes.remove(node)


def name_of(node: onnx.NodeProto) -> str:
    """What to call a node."""
    return node.name or node.output[0]
