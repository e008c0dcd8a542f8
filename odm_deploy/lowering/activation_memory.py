"""How much memory a graph's activations take per input pixel: what decides whether an image can be run whole."""

from __future__ import annotations

import math

import onnx

from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import infer_types, with_sizes

_PROBE_PX = 64
"""Side of the image the graph is measured on; a multiple of every window and stride in use."""
_FLOAT_BYTES = 4
_VIEWS = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Cast", "Relu", "Clip"})
"""Operators whose result needs no memory of its own: runtimes fuse them into their neighbour or work in place."""


def activation_bytes_per_px(model: onnx.ModelProto) -> float | None:
    """Bytes of activations alive at the worst moment, per input pixel; None where shapes inside the graph are unknown.

    Operators run in the order of the file and everything counts as float32, so runtimes that compute in int8 or reorder
    stay below; their scratch memory comes on top.
    """
    types = infer_types(with_sizes(model, InputShapes.static(1, _PROBE_PX, _PROBE_PX)))
    if any(not kind.HasField("shape") or any(not dim.dim_value for dim in kind.shape.dim) for kind in types.values()):
        return None
    sizes = {name: _FLOAT_BYTES * math.prod(dim.dim_value for dim in kind.shape.dim) for name, kind in types.items()}
    owner: dict[str, str] = {}
    last_use: dict[str, int] = {}
    for position, node in enumerate(model.graph.node):
        activations = [name for name in node.input if name in sizes]
        for name in activations:
            last_use[owner.get(name, name)] = position
        for name in node.output:
            owner[name] = owner.get(activations[0], activations[0]) if node.op_type in _VIEWS and activations else name
    for value in model.graph.output:
        last_use[owner.get(value.name, value.name)] = len(model.graph.node)
    image = model.graph.input[0].name
    alive, peak = {image: sizes[image]}, sizes[image]
    for position, node in enumerate(model.graph.node):
        # A view may be larger than what it is a view of (int8 to float32): both count as float32 here.
        alive.update({name: sizes[name] for name in node.output if name in sizes and owner.get(name) == name})
        peak = max(peak, sum(alive.values()))
        for name in [name for name in alive if last_use.get(name, -1) <= position]:
            del alive[name]
    return peak / _PROBE_PX**2
