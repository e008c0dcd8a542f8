"""Faults of activation quantizers: bounds, zero points, scales, rounding."""

from __future__ import annotations

import numpy as np
import onnx

from mutations.faults import graph_fault
from mutations.graph import Graph, NoSuchPlaceError, middle, name_of


def _move_bounds(graph: Graph, lower: int, upper: int) -> str:
    """Move the bounds of the middle quantizer that has any by so many codes."""
    quantizer = middle([quantizer for quantizer in graph.quantizers() if graph.bounds(quantizer)])
    places = graph.bounds(quantizer)
    scale = graph.value(quantizer.input[1])
    for (node, slot), codes in zip((places[0], places[-1]), (lower, upper), strict=True):
        if len(places) == 1 and codes != upper:
            continue
        name = graph.own(node, slot)
        bound = graph.value(name)
        graph.store(name, bound + codes * scale if bound.dtype.kind == "f" else bound.astype(np.int64) + codes)
    return name_of(quantizer)


@graph_fault("bounds a code too wide")
def widen_bounds(graph: Graph) -> str:
    """Let codes be one beyond either end of the grid."""
    return _move_bounds(graph, -1, 1)


graph_fault("bounds a code too narrow")(lambda graph: _move_bounds(graph, 1, -1))


def _pair(graph: Graph) -> tuple[onnx.NodeProto, list[onnx.NodeProto]]:
    """The middle quantizer and what dequantizes its codes."""
    quantizer = graph.quantizer()
    readers = graph.readers(quantizer.output[0])
    # In graphs for CPUs, the codes' bounds come behind the quantizer.
    readers += [behind for node in readers if node.op_type == "Clip" for behind in graph.readers(node.output[0])]
    return quantizer, [node for node in readers if node.op_type == "DequantizeLinear"]


def _change(graph: Graph, slot: int, change: float, *, ulps: bool = False, both: bool = True) -> str:
    """Scale (slot 1, by a factor or units in the last place) or zero point (slot 2, by adding), at Q and DQ or DQ."""
    quantizer, dequantizers = _pair(graph)
    for node in ([quantizer] if both else []) + dequantizers:
        if len(node.input) <= slot:
            raise NoSuchPlaceError
        name = graph.own(node, slot)
        value = graph.value(name)
        if ulps:
            value = np.nextafter(value, np.float32(np.inf))
        else:
            value = value * np.float32(change) if slot == 1 else value + int(change)
        graph.store(name, value)
    return name_of(quantizer)


graph_fault("zero point by one, at Q and DQ")(lambda graph: _change(graph, 2, 1))
graph_fault("zero point by one, at DQ")(lambda graph: _change(graph, 2, 1, both=False))
graph_fault("activation scale by 1 ulp")(lambda graph: _change(graph, 1, 0.0, ulps=True))
graph_fault("activation scale by 1 %")(lambda graph: _change(graph, 1, 1.01))
graph_fault("activation scale by 1 %, at DQ")(lambda graph: _change(graph, 1, 1.01, both=False))


def _round_first(graph: Graph, add: float) -> str:
    """Let values be rounded to floor(x / s + add) before they are quantized."""
    quantizer = graph.quantizer()
    scale, half = quantizer.input[1], graph.new(np.float32(add))
    steps = [("Div", [scale], {}), ("Add", [half], {}), ("Floor", [], {}), ("Mul", [scale], {})]
    graph.before(quantizer, 0, steps)
    return name_of(quantizer)


graph_fault("rounding down")(lambda graph: _round_first(graph, 0.0))
graph_fault("rounding half up")(lambda graph: _round_first(graph, 0.5))
