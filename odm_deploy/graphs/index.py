"""Look-ups in an ONNX graph that several readers share: who computes a tensor, who reads it, what is stored in it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute, `default` where it is absent."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


class GraphIndex:
    """The tensors of one graph by name. Bodies of If and Loop are not entered."""

    def __init__(self, graph: GraphProto) -> None:
        self.stored: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        """Constants whose value the file holds: initializers, and values of Constant nodes."""
        self.producers: dict[str, NodeProto] = {}
        """The node that computes a tensor."""
        self.readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        """The nodes that read a tensor, once for each of their inputs."""
        for node in graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in filter(None, node.input):
                self.readers[name].append(node)
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self.stored[node.output[0]] = value

    def value(self, tensor: str) -> NDArray[Any] | None:
        """The value of a stored constant; None where it is computed or unreadable."""
        stored = self.stored.get(tensor)
        try:
            return None if stored is None else numpy_helper.to_array(stored)
        except (ValueError, TypeError, KeyError):
            return None
