"""Faults where images enter and leave: mean shift, channel order, rounding to bytes, and what the manifest says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from mutations.faults import graph_fault, manifest_fault
from mutations.graph import Graph, NoSuchPlaceError, middle, name_of


def _shifts(graph: Graph) -> list[tuple[onnx.NodeProto, int]]:
    """Additions and subtractions of a number for each colour."""
    found: list[tuple[onnx.NodeProto, int]] = []
    constants = graph.constants
    for node in graph.nodes:
        if node.op_type in ("Add", "Sub"):
            slots = [slot for slot, name in enumerate(node.input) if name in constants]
            found += [(node, slot) for slot in slots if graph.value(node.input[slot]).size == 3]
    return found


def _shift(graph: Graph, which: int, amount: float) -> str:
    found = _shifts(graph)
    node, slot = middle(found[:1] if which == 0 else found[-1:])
    name = graph.own(node, slot)
    value = graph.value(name)
    value.flat[1] += np.float32(amount)
    graph.store(name, value)
    return name_of(node)


graph_fault("mean shift of one colour before, by 0.1 grey levels")(lambda graph: _shift(graph, 0, 0.1))
graph_fault("mean shift of one colour behind, by 0.1 grey levels")(lambda graph: _shift(graph, -1, 0.1))


@graph_fault("channels of the output in the other order")
def _order(graph: Graph) -> str:
    output = graph.model.graph.output[0]
    sizes = [size.dim_value for size in output.type.tensor_type.shape.dim]
    axis = sizes.index(3) if 3 in sizes else 1
    last = graph.producers[output.name]
    last.output[0] = "mutant.straight"
    reversal = graph.new(np.array([2, 1, 0], np.int64))
    graph.nodes.append(
        onnx.helper.make_node("Gather", ["mutant.straight", reversal], [output.name], "mutant/Gather", axis=axis)
    )
    return name_of(last)


def _last_casts(graph: Graph) -> list[onnx.NodeProto]:
    """The cast to bytes that makes the graph's output; none in graphs of float images."""
    output = graph.model.graph.output[0].name
    return [node for node in graph.nodes if node.op_type == "Cast" and node.output[0] == output]


@graph_fault("bytes truncated, not rounded")
def _truncated(graph: Graph) -> str:
    casts = _last_casts(graph)
    rounding = [node for node in graph.nodes if node.op_type == "Round"]
    if not casts or not rounding:
        raise NoSuchPlaceError
    graph.bypass(rounding[-1], rounding[-1].input[0])
    return "the output"


@graph_fault("no saturation to bytes")
def _wrapping(graph: Graph) -> str:
    cast = middle(_last_casts(graph))
    for node in [node for node in graph.nodes if node.op_type in ("Max", "Min", "Clip")][-2:]:
        graph.bypass(node, node.input[0])
    # Beyond a byte, casts of floats are undefined; over integers they wrap around, as a naive program's do.
    graph.before(cast, 0, [("Cast", [], {"to": onnx.TensorProto.INT32})])
    return "the output"


@manifest_fault("tiles overlap by one pixel too few")
def _radius(document: dict[str, Any]) -> str:
    if not document.get("receptive_radius_px"):
        raise NoSuchPlaceError
    document["receptive_radius_px"] -= 1
    return "receptive_radius_px"


@manifest_fault("manifest: the other channel order")
def _stated_order(document: dict[str, Any]) -> str:
    onnx_entry = document.get("onnx", {})
    for key in ("order", "channel_order"):
        if key in onnx_entry:
            onnx_entry[key] = "bgr" if onnx_entry[key] == "rgb" else "rgb"
            return key
    raise NoSuchPlaceError
