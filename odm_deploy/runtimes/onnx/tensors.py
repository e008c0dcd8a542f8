"""The inputs and outputs of an ONNX graph, as the runtimes that load ONNX report them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from odm_deploy.runtimes.tensor_info import TensorInfo

if TYPE_CHECKING:
    import onnx


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """What a caller has to feed: the graph's inputs without those that an initializer already fills."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return _infos(value for value in model.graph.input if value.name not in filled)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """What a run returns, in the graph's order."""
    return _infos(model.graph.output)


def _infos(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorInfo, ...]:
    return tuple(_info(value) for value in values)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return TensorInfo(value.name, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def number_types(model: onnx.ModelProto) -> set[int]:
    """Types of the numbers a graph computes with, as members of `onnx.TensorProto.DataType`."""
    graph = model.graph
    declared = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    stored = {tensor.data_type for tensor in graph.initializer}
    cast = {
        attribute.i
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    return declared | stored | cast
