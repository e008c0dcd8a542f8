"""Faults of the graph's wiring: residuals, fallbacks, padding, shuffles, activations, taps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx

from mutations.faults import graph_fault
from mutations.faults_quantizers import widen_bounds
from mutations.graph import Graph, NoSuchPlaceError, middle, name_of

_TAPS = "odm.taps"


def _residuals(graph: Graph) -> list[onnx.NodeProto]:
    """Additions of two computed tensors."""
    constants = graph.constants
    return [node for node in graph.nodes if node.op_type == "Add" and not any(name in constants for name in node.input)]


def _drop(graph: Graph, which: int, keep: int) -> str:
    found = _residuals(graph)
    node = middle(found[:1] if which == 0 else found[-1:])
    graph.bypass(node, node.input[keep])
    return name_of(node)


graph_fault("first residual dropped")(lambda graph: _drop(graph, 0, 0))
graph_fault("long skip dropped")(lambda graph: _drop(graph, -1, 0))
graph_fault("branch of a residual dropped")(lambda graph: _drop(graph, -1, 1))


@graph_fault("skip off by 1 %")
def _skip(graph: Graph) -> str:
    node = middle(_residuals(graph)[-1:])
    graph.before(node, 1, [("Mul", [graph.new(np.float32(1.01))], {})])
    return name_of(node)


@graph_fault("float fallback: one input not quantized")
def _fallback(graph: Graph) -> str:
    quantizer = graph.quantizer()
    readers = list(graph.readers(quantizer.output[0]))
    while readers:
        node = readers.pop()
        if node.op_type == "Clip":
            # In graphs for CPUs, the codes' bounds.
            readers += graph.readers(node.output[0])
        elif node.op_type == "DequantizeLinear":
            graph.bypass(node, quantizer.input[0])
    return name_of(quantizer)


def _pad(graph: Graph, mode: str, steps: float) -> str:
    """Pad the middle quantized convolution's input in an operator of its own, by so many steps of its grid."""
    layers = [node for node in graph.nodes if node.op_type == "Conv" and graph.weight_quantizer(node) is not None]
    for node in layers[len(layers) // 2 :] + layers:
        pads = next((each for each in node.attribute if each.name == "pads" and any(each.ints)), None)
        if pads is not None:
            sizes = graph.new(np.array([0, 0, *pads.ints[:2], 0, 0, *pads.ints[2:]], np.int64))
            value = graph.new(np.float32(steps * graph.step_behind(node.input[0])))
            operands = [sizes, value] if mode == "constant" else [sizes]
            graph.before(node, 0, [("Pad", operands, {"mode": mode})])
            pads.ints[:] = [0] * len(pads.ints)
            return name_of(node)
    # A dialect that pads before it quantizes.
    node = middle([node for node in graph.nodes if node.op_type == "Pad"])
    if mode == "constant":
        del node.input[2:]
        node.input.append(graph.new(np.float32(steps * graph.step_behind(node.output[0]))))
    else:
        del node.attribute[:]
        del node.input[2:]
        node.attribute.append(onnx.helper.make_attribute("mode", mode))
    return name_of(node)


graph_fault("padding with one step instead of 0")(lambda graph: _pad(graph, "constant", 1.0))
graph_fault("padding with the border's own values")(lambda graph: _pad(graph, "edge", 0.0))


@graph_fault("pixel shuffle in the other order")
def _shuffle(graph: Graph) -> str:
    for node in graph.nodes:
        if node.op_type == "DepthToSpace":
            mode = next((each for each in node.attribute if each.name == "mode"), None)
            other = b"DCR" if mode is not None and mode.s == b"CRD" else b"CRD"
            if mode is not None:
                node.attribute.remove(mode)
            node.attribute.append(onnx.helper.make_attribute("mode", other))
            return name_of(node)
    raise NoSuchPlaceError


@graph_fault("an activation function missing")
def _no_activation(graph: Graph) -> str:
    for node in graph.nodes:
        if node.op_type in ("Relu", "PRelu", "LeakyRelu", "Gelu", "Erf"):
            graph.bypass(node, node.input[0])
            return name_of(node)
    raise NoSuchPlaceError


@graph_fault("parts of a concatenation swapped")
def _concat(graph: Graph) -> str:
    for node in graph.nodes:
        if node.op_type == "Concat" and len(node.input) > 1 and node.input[0] in graph.producers:
            # Parts of one size only: others would not even load.
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return name_of(node)
    raise NoSuchPlaceError


def _edit_taps(graph: Graph, keep: Any) -> str:
    for entry in graph.model.metadata_props:
        if entry.key == _TAPS:
            taps = json.loads(entry.value)
            kept = [tap for index, tap in enumerate(taps) if keep(index, len(taps))]
            if kept:
                entry.value = json.dumps(kept)
            else:
                graph.model.metadata_props.remove(entry)
            return "the metadata"
    raise NoSuchPlaceError


graph_fault("taps removed")(lambda graph: _edit_taps(graph, lambda index, count: False))


@graph_fault("one tap removed, bounds a code too wide")
def _one_tap(graph: Graph) -> str:
    widen_bounds(graph)
    return _edit_taps(graph, lambda index, count: index != count // 2)
