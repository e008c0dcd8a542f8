"""Shapes of all tensors of a graph for one input shape, also where the graph computes shapes from shapes.

ONNX's own inference follows sizes through a few operators only. Networks of windows divide, round up and enumerate
them; with the input shape fixed, all of that is arithmetic on constants, done here once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.constants import ConstantValues, evaluate
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.graphs.input_shapes import InputShapes

Shapes = dict[str, tuple[int, ...]]

_MAX_ROUNDS = 256
"""Each goes through the sizes of one shift of windows, of which large networks have dozens."""
_MAX_SIZE = 4096
"""Values of larger constants are no sizes, and are not computed."""


def infer_shapes(model: ModelProto, sizes: InputShapes | None) -> Shapes:
    """Shapes of all tensors of a graph for one input shape.

    Args:
        model: the graph; it is not changed.
        sizes: their `opt` shape replaces the dynamic dimensions of every input of rank 4.

    Returns:
        Fully known shapes by tensor name; tensors whose shape cannot be inferred are absent.

    Raises:
        InputError: the graph contradicts itself.
    """
    fixed = with_sizes(model, sizes)
    shapes = _inferred(fixed)
    for _ in range(_MAX_ROUNDS):
        if not _fold_sizes(fixed, shapes):
            break
        shapes = _inferred(fixed)
    return shapes


def with_sizes(model: ModelProto, sizes: InputShapes | None) -> ModelProto:
    """A copy of a graph with its inputs as in `infer_shapes`, from which all other shapes can be inferred."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if sizes is not None and len(dims) == 4:
            declared = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
            for dim, size in zip(dims, sizes.for_input(declared, value.name)[1], strict=True):
                dim.dim_value = size
    # Declared intermediate and output shapes are symbolic and would win over what follows from the input.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def infer_types(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """Element type and shape, as far as ONNX itself tells, of inputs and of all that is computed; `model` stays.

    Raises:
        InputError: a type or shape that the graph states contradicts what its operators make.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=not _may_count_far(model)).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError("the ONNX graph contradicts itself", why=" ".join(str(error).split())[:300]) from error
    return {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}


def _may_count_far(model: ModelProto) -> bool:
    """Whether ONNX, following values, might write out a Range of billions: it does so before it knows how many.

    Without values fewer shapes are known at once; `infer_shapes` computes sizes by itself.
    """
    ranges = [node for part in parts_of(model.graph) for node in part.node if node.op_type == "Range"]
    if not ranges:
        return False
    # Of unknown sizes no range is written out.
    if all(dim.HasField("dim_value") for each in model.graph.input for dim in each.type.tensor_type.shape.dim):
        return True
    index = GraphIndex(model.graph)
    known = ConstantValues(index)
    for node in ranges:
        values = [known.get(name) for name in node.input]
        given = {name: value for name, value in zip(node.input, values, strict=True) if value is not None}
        if len(given) == len(set(node.input)) and evaluate(node, given) is None:
            return True
    return False


def parts_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield from parts_of(body)


def _inferred(model: ModelProto) -> Shapes:
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name, kind in infer_types(model).items():
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _fold_sizes(model: ModelProto, shapes: Shapes) -> bool:
    """Replace nodes whose result is now a known array of integers by constants, in place; whether there were any."""
    graph = model.graph
    known: dict[str, NDArray[Any]] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if np.prod(tensor.dims) <= _MAX_SIZE
    }
    kept: list[NodeProto] = []
    for node in graph.node:
        values = _evaluate(node, known, shapes)
        if values is None:
            kept.append(node)
            continue
        known.update(values)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    folded = len(kept) < len(graph.node)
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _evaluate(node: NodeProto, known: dict[str, NDArray[Any]], shapes: Shapes) -> dict[str, NDArray[Any]] | None:
    """The outputs of a node that only needs known integers; None for all others."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = shapes[node.input[0]][ends.get("start", 0) : ends.get("end")]
        return {node.output[0]: np.array(sizes, np.int64)}
    inputs = [name for name in node.input if name]
    if not inputs or any(name not in known or known[name].dtype.kind not in "iub" for name in inputs):
        return None
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return None
    arrays = evaluate(node, {name: known[name] for name in inputs})
    if arrays is None or any(array.dtype.kind not in "iub" or array.size > _MAX_SIZE for array in arrays):
        return None
    return dict(zip(node.output, arrays, strict=False))
