"""Look-ups in an ONNX graph that several readers share: who computes a tensor, who reads it, what is stored in it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute, `default` where it is absent."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _tensor_of(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node, in whichever of its attributes it stands; None for text and sparse tensors."""
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32)):
        if (value := attribute(node, name)) is not None:
            return numpy_helper.from_array(np.asarray(value, kind), node.output[0])
    for name in ("value_int", "value_ints"):
        if (value := attribute(node, name)) is not None:
            return numpy_helper.from_array(np.asarray(value, np.int64), node.output[0])
    return attribute(node, "value")


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
            if node.op_type == "Constant" and (tensor := _tensor_of(node)) is not None:
                self.stored[node.output[0]] = tensor

    def value(self, tensor: str) -> NDArray[Any] | None:
        """The value of a constant, as far as this index finds it: stored ones."""
        return self.stored_value(tensor)

    def stored_value(self, tensor: str) -> NDArray[Any] | None:
        """The value of a stored constant; None where it is computed or of a type that numpy does not have."""
        stored = self.stored.get(tensor)
        try:
            return None if stored is None else numpy_helper.to_array(stored)
        except (ValueError, TypeError, KeyError):
            return None
