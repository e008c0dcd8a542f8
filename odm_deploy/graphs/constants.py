"""Values of tensors that a graph computes from nothing but constants: scales behind Identity, amax / 127, ..."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.graphs.index import GraphIndex

_MAX_SIZE = 2**16
"""Values of larger tensors are weights, and are not computed."""

_LARGEST_RESULT = 2**24
"""Larger ones are not even computed: a few numbers can ask for any size."""

_MAX_DEPTH = 100


class ConstantValues:
    """Looks up, and computes where need be, the small constants of one graph; each once."""

    def __init__(self, index: GraphIndex, *, max_size: int = _MAX_SIZE) -> None:
        self._index = index
        self._max_size = max_size
        self._known: dict[str, NDArray[Any] | None] = {}

    def get(self, tensor: str, depth: int = 0) -> NDArray[Any] | None:
        """The value of `tensor`; None where it depends on an input, is large, or cannot be computed."""
        if tensor not in self._known:
            self._known[tensor] = self._find(tensor, depth)
        return self._known[tensor]

    def _find(self, tensor: str, depth: int) -> NDArray[Any] | None:
        stored = self._index.stored.get(tensor)
        if stored is not None:
            return self._index.stored_value(tensor) if prod(stored.dims) <= self._max_size else None
        node = self._index.producers.get(tensor)
        if node is None or depth > _MAX_DEPTH or node.op_type.startswith("Random") or not any(node.input):
            return None
        values = {name: self.get(name, depth + 1) for name in node.input if name}
        given = {name: value for name, value in values.items() if value is not None}
        if len(given) < len(values):
            return None
        result = dict(zip(node.output, evaluate(node, given) or (), strict=False)).get(tensor)
        return result if result is not None and result.size <= self._max_size else None


class ConstantIndex(GraphIndex):
    """An index that also computes constants, as weights are that a graph quantizes itself.

    Args:
        graph: its nodes in topological order.
        max_size: those of more elements are not computed.
    """

    def __init__(self, graph: GraphProto, *, max_size: int = _MAX_SIZE) -> None:
        super().__init__(graph)
        self.constants = {tensor.name for tensor in graph.initializer}
        """Tensors that depend on no input of the graph."""
        for node in graph.node:
            # Nodes are in topological order, so one pass finds all that depends on nothing but constants.
            if all(name in self.constants for name in node.input if name) and not node.op_type.startswith("Random"):
                self.constants.update(node.output)
        self._values = ConstantValues(self, max_size=max_size)

    def value(self, tensor: str) -> NDArray[Any] | None:
        """The value of a constant, stored or computed from such; None for large ones that are computed."""
        if tensor in self.stored:
            return self.stored_value(tensor)
        return self._values.get(tensor) if tensor in self.constants else None


def per_code(parameter: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> NDArray[Any]:
    """A scale or zero point of a DequantizeLinear, so that it applies to codes of this shape.

    Args:
        parameter: one, or one for each index of an axis, or for each block there.
        shape: of the codes.
        axis: the operator's attribute.
        block: likewise; 0 where there are no blocks.

    Raises:
        ValueError: it does not fit the codes.
    """
    if parameter.size == 1:
        return parameter.reshape(())
    if block:
        # The last block may be a part of one.
        return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
    return parameter.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


def evaluate(node: NodeProto, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]] | None:
    """The outputs of one node by ONNX's own reference; None where it cannot run it, or they would be large."""
    try:
        if any(prod(shape) > _LARGEST_RESULT for shape in result_shapes(node, inputs)):
            return None
        results: Any = ReferenceEvaluator(node).run(None, inputs)
    except Exception:  # an operator the reference lacks costs a value, nothing more
        return None
    return [np.asarray(result) for result in results]


def result_shapes(node: NodeProto, inputs: dict[str, NDArray[Any]]) -> list[list[int]]:
    """Shapes of what a node makes of these, as far as ONNX infers them: a size may be one of the values.

    Raises:
        InferenceError: of ONNX, or whatever other error it ends in.
    """
    if node.op_type == "Range":
        start, limit, step = (float(inputs[name].reshape(-1)[0]) for name in node.input)
        return [[max(ceil((limit - start) / step), 0)]]
    known = [numpy_helper.from_array(array, name) for name, array in inputs.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    model = helper.make_model(helper.make_graph([node], "one", [], outputs, known))
    inferred = onnx.shape_inference.infer_shapes(model)
    return [[dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in inferred.graph.output]


def onnx_type(array: NDArray[Any]) -> int:
    """ONNX data type of an array; UNDEFINED where it has none."""
    try:
        return helper.np_dtype_to_tensor_dtype(array.dtype)
    except (ValueError, KeyError):
        return TensorProto.UNDEFINED
