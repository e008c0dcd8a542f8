"""Whether a graph may take memory or time out of all proportion to its image: what a stranger's bundle may describe.

A manifest's hash says that a graph is the one that came with it, not that it means well.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import infer_types, with_sizes

if TYPE_CHECKING:
    import onnx

_PROBE_PX = 32
LARGEST_ELEMENTS = 2**29
"""Of all tensors together for an image of `_PROBE_PX` squared: many times what any super-resolution network has."""
_FREE = frozenset({"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
"""Operators whose result may be of any size, by the values of an operand."""
_OWN_DOMAINS = ("", "ai.onnx")


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
