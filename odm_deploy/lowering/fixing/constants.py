"""Constants of a graph, computed by ONNX Runtime: what it stores, divides, transposes or quantizes before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from odm_deploy.graphs.plain_run import run_plainly
from odm_deploy.lowering.lint.graph import QdqGraph


class Constants:
    """Values of all constants of one graph, computed on first use.

    Args:
        model: the graph, without local functions.
    """

    def __init__(self, model: ModelProto) -> None:
        self._graph = QdqGraph(model)
        self._known: dict[str, NDArray[Any]] = {}

    def is_constant(self, tensor: str | None) -> bool:
        """Whether a tensor depends on no input."""
        return tensor is not None and self._graph.is_constant(tensor)

    def is_stored(self, tensor: str) -> bool:
        """Whether a constant is an initializer or the value of a Constant node."""
        return tensor in self._graph.stored

    def type_of(self, tensor: str) -> int:
        """ONNX data type of a constant."""
        return self._graph.element_type(tensor)

    def rank_of(self, tensor: str | None) -> int:
        """Number of axes of a tensor; 0 where nothing is known."""
        return len(self._graph.shape_of(tensor)) if tensor is not None else 0

    def value(self, tensor: str) -> NDArray[Any]:
        """A constant in the type it has."""
        return self._get(tensor, None)

    def codes(self, tensor: str) -> NDArray[np.int64]:
        """Integer codes of any width."""
        return self._get(tensor, TensorProto.INT32).astype(np.int64)

    def moved(self, tensor: str, given: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """What `tensor` would be if the tensors on its way were `given`."""
        return given[tensor] if tensor in given else self._compute(tensor, None, given)

    def _get(self, tensor: str, cast: int | None) -> NDArray[Any]:
        if tensor not in self._known:
            stored = self._graph.stored_value(tensor)
            self._known[tensor] = self._compute(tensor, cast, {}) if stored is None else stored
        return self._known[tensor]

    def _compute(self, tensor: str, cast: int | None, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        nodes = self._needed(tensor, given)
        result = tensor
        if cast is not None:
            # numpy lacks some of the types that codes have.
            result = f"{tensor}.cast"
            nodes.append(helper.make_node("Cast", [tensor], [result], to=cast))
        names = {name for node in nodes for name in node.input}
        stored = [entry for entry in self._graph.model.graph.initializer if entry.name in names]
        stored += [numpy_helper.from_array(array, name) for name, array in given.items()]
        output = [helper.make_empty_tensor_value_info(result)]
        graph = helper.make_graph(nodes, "constants", [], output, stored)
        opsets = self._graph.model.opset_import
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self._graph.model.ir_version)
        return run_plainly(model, {}, [result])[result]

    def _needed(self, tensor: str, given: Mapping[str, Any]) -> list[NodeProto]:
        """The nodes that compute a constant, in graph order, up to what is given."""
        wanted, found = [tensor], set[int]()
        while wanted:
            name = wanted.pop()
            node = None if name in given else self._graph.producers.get(name)
            if node is not None and id(node) not in found:
                found.add(id(node))
                wanted += [each for each in node.input if each]
        return [node for node in self._graph.nodes if id(node) in found]
