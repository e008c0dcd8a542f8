"""Whether a graph may take memory or time out of all proportion to its image: what a stranger's bundle may describe.

A manifest's hash says that a graph is the one that came with it, not that it means well.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from onnx import numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.constants import result_shapes
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import infer_shapes, infer_types, parts_of, with_sizes

if TYPE_CHECKING:
    import onnx

_PROBE_PX = 32
LARGEST_ELEMENTS = 2**29
"""Of all tensors together for an image of `_PROBE_PX` squared: many times what any super-resolution network has."""
LARGEST_TENSOR = 2**28
"""Of one tensor, for such an image: a gibibyte in float32."""
_MOST_SIZES = 64
"""Stored numbers; more are no sizes."""
_FREE = frozenset({"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
"""Operators whose result may be of any size, by the values of an operand."""
_OWN_DOMAINS = ("", "ai.onnx")


def refuse_growth(model: onnx.ModelProto, label: str) -> None:
    """Refuse a float network, before anything runs it, some tensor of which is huge although the image is small.

    Sizes that nothing here can follow are let through. `label` names the model.

    Raises:
        InputError: the line names the operator and what it would make.
    """
    sizes = InputShapes.static(1, _PROBE_PX, _PROBE_PX)
    try:
        shapes = infer_shapes(model, sizes)
    except InputError:
        # What contradicts itself is for ONNX Runtime to judge.
        shapes = {}
    index = GraphIndex(model.graph)
    for part in parts_of(model.graph):
        stored = index.stored | GraphIndex(part).stored
        for node in part.node:
            inside = _sizes_inside(node, stored) if part is not model.graph else {}
            for name in node.output:
                shape = inside.get(name) or shapes.get(name, ())
                if prod(shape) > LARGEST_TENSOR:
                    raise InputError(
                        f"{label} asks for more memory than any network of images",
                        why=f"its {node.op_type} {node.name or name!r} makes {'x'.join(map(str, shape))} values, "
                        f"{prod(shape) / 2**28:.3g} GiB, of an image of {_PROBE_PX}x{_PROBE_PX}",
                        fix="check where it comes from, and how it was exported",
                    )


def _sizes_inside(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> dict[str, tuple[int, ...]]:
    """Shapes of what a node in a branch or loop makes of stored numbers alone."""
    tensors = {name: stored[name] for name in node.input if name in stored}
    small = all(prod(tensor.dims) <= _MOST_SIZES for tensor in tensors.values())
    if not small or any(name not in tensors for name in filter(None, node.input)):
        return {}
    try:
        made = result_shapes(node, {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()})
    except Exception:  # whatever ONNX finds wrong with it, ONNX Runtime will say
        return {}
    return {name: tuple(shape) for name, shape in zip(filter(None, node.output), made, strict=True)}


def may_grow(model: onnx.ModelProto) -> bool:
    """Whether a graph loops, has operators or functions of its own, or makes tensors that are huge or of unknown size.

    The answer no is no proof: sizes that ONNX does not infer are not counted where no operand decides over them.
    """
    nodes = model.graph.node
    if model.functions or any(node.domain not in _OWN_DOMAINS for node in nodes):
        return True
    if any(attribute.g.node or attribute.graphs for node in nodes for attribute in node.attribute):
        return True
    try:
        types = infer_types(with_sizes(model, InputShapes.static(1, _PROBE_PX, _PROBE_PX)))
    except InputError:
        return True
    sizes = {
        name: prod(max(dim.dim_value, 0) for dim in kind.shape.dim)
        for name, kind in types.items()
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }
    if sum(sizes.values()) > LARGEST_ELEMENTS:
        return True
    return any(node.op_type in _FREE and any(name not in sizes for name in node.output) for node in nodes)
