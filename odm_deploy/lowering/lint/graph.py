"""An ONNX graph indexed for questions about quantization: who makes a tensor, is it constant, what type are its codes.

Nothing here needs torch, and models are only read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto

from odm_deploy.errors import InputError
from odm_deploy.graphs.constants import ConstantIndex, onnx_type
from odm_deploy.graphs.index import attribute
from odm_deploy.graphs.shapes import infer_types

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


class QdqGraph(ConstantIndex):
    """Index over the main graph of a model: local functions are inlined first, bodies of If and Loop not entered."""

    def __init__(self, model: ModelProto) -> None:
        self.original = model
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        super().__init__(model.graph)
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self._inputs = {value.name: value for value in model.graph.input}

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model imports none."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    def name(self, node: NodeProto) -> str:
        """The node's name, or what TensorRT's parser calls a node without one."""
        return node.name or f"node_of_{node.output[0]}"

    def of_type(self, *op_types: str) -> Iterator[NodeProto]:
        """All nodes of these types, in graph order."""
        return (node for node in self.nodes if node.op_type in op_types)

    def is_constant(self, tensor: str) -> bool:
        """Whether `tensor` depends on no graph input."""
        return tensor in self.constants

    def scalar(self, tensor: str) -> float | None:
        """The value of a constant with one element."""
        array = self.value(tensor)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Shape of a constant; that of a stored one without reading its values."""
        stored = self.stored.get(tensor)
        if stored is not None:
            return tuple(stored.dims)
        value = self._values.get(tensor)
        return None if value is None else value.shape

    def shape_of(self, tensor: str) -> tuple[int | None, ...]:
        """Shape of any tensor, None for each size that depends on the input; () where nothing is known."""
        return self.shape(tensor) or self._inferred_shapes.get(tensor, ())

    @cached_property
    def _inferred_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes that follow from the graph alone, None for each size that depends on the input."""
        try:
            types = infer_types(self.model)
        except InputError:
            return {}
        return {
            name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            for name, kind in types.items()
            if kind.HasField("shape")
        }

    def zero_point(self, node: NodeProto) -> npt.NDArray[Any] | None:
        """Zero points of a Q or DQ node; None where they are left out or computed at run time."""
        return self.value(node.input[2]) if len(node.input) > 2 else None

    def scale(self, node: NodeProto) -> npt.NDArray[np.float64] | None:
        """Scales of a Q or DQ node; None where they are computed at run time."""
        array = self.value(node.input[1])
        return None if array is None else np.asarray(array, dtype=np.float64)

    def code_type(self, node: NodeProto) -> int:
        """ONNX data type of the codes a Q node writes or a DQ node reads; UNDEFINED where it cannot be told."""
        if len(node.input) > 2 and node.input[2]:
            zero_point = self.element_type(node.input[2])
            if zero_point != TensorProto.UNDEFINED:
                return zero_point
        if node.op_type == QUANTIZE:
            # The standard's default is uint8, which surprises whoever leaves the zero point out.
            return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
        return self.element_type(node.input[0])

    def element_type(self, tensor: str) -> int:
        """ONNX data type of a constant, a graph input or quantized codes; UNDEFINED for anything else."""
        stored = self.stored.get(tensor)
        if stored is not None:
            return stored.data_type
        if tensor in self._inputs:
            return self._inputs[tensor].type.tensor_type.elem_type
        producer = self.producers.get(tensor)
        if producer is not None and producer.op_type == QUANTIZE:
            return self.code_type(producer)
        value = self._values.get(tensor) if self.is_constant(tensor) else None
        return TensorProto.UNDEFINED if value is None else onnx_type(value)


def type_name(data_type: int) -> str:
    """`INT8` and so on, as ONNX spells it."""
    return str(TensorProto.DataType.Name(data_type))  # pyright: ignore[reportArgumentType]
