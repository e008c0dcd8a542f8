"""Values of tensors that a graph computes from nothing but constants: scales behind Identity, amax / 127, ..."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.graphs.index import GraphIndex

_MAX_SIZE = 2**16
"""Values of larger tensors are weights, and are not computed."""

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


def evaluate(node: NodeProto, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]] | None:
    """The outputs of one node by ONNX's own reference; None where it cannot run it."""
    try:
        results: Any = ReferenceEvaluator(node).run(None, inputs)
    except Exception:  # an operator the reference lacks costs a value, nothing more
        return None
    return [np.asarray(result) for result in results]


def onnx_type(array: NDArray[Any]) -> int:
    """ONNX data type of an array; UNDEFINED where it has none."""
    try:
        return helper.np_dtype_to_tensor_dtype(array.dtype)
    except (ValueError, KeyError):
        return TensorProto.UNDEFINED
