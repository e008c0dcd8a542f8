"""Faults of a layer's numbers: codes, scales, biases, float weights."""

from __future__ import annotations

import numpy as np
import onnx

from mutations.faults import graph_fault
from mutations.graph import Graph, NoSuchPlaceError, middle, name_of


@graph_fault("one weight code by one")
def _code(graph: Graph) -> str:
    layer, weights = middle(graph.quantized_layers())
    codes = graph.value(weights.input[0])
    codes.flat[0] += 1 if codes.flat[0] <= 0 else -1
    graph.store(weights.input[0], codes)
    return name_of(layer)


@graph_fault("least weight code of the last layer by one")
def _quiet_code(graph: Graph) -> str:
    """The least weight of the last quantized layer: what an image may not show."""
    layer, weights = middle(graph.quantized_layers()[-1:])
    codes = graph.value(weights.input[0])
    place = int(np.abs(codes.astype(np.int16)).argmin())
    codes.flat[place] += 1 if codes.flat[place] <= 0 else -1
    graph.store(weights.input[0], codes)
    return name_of(layer)


def _scales(graph: Graph, change: str) -> str:
    layer, weights = middle(graph.quantized_layers())
    scale = graph.value(weights.input[1])
    if change == "swap":
        if scale.size < 2 or scale[0] == scale[-1]:
            raise NoSuchPlaceError
        scale[[0, -1]] = scale[[-1, 0]]
    elif change == "ulp":
        scale = np.nextafter(scale, np.float32(np.inf))
    else:
        scale = scale * np.float32(1.01)
    name = graph.own(weights, 1)
    graph.store(name, scale)
    return name_of(layer)


graph_fault("weight scales by 1 ulp")(lambda graph: _scales(graph, "ulp"))
graph_fault("weight scales by 1 %")(lambda graph: _scales(graph, "percent"))
graph_fault("two channels' scales swapped")(lambda graph: _scales(graph, "swap"))


def _bias(graph: Graph) -> tuple[onnx.NodeProto, int]:
    """Where the middle quantized layer's bias stands, if not all zeros: its operand, or behind a matrix product."""
    layer, _ = middle(graph.quantized_layers())
    constants = graph.constants
    places = [(layer, 2)] if len(layer.input) > 2 and layer.input[2] in constants else []
    for reader in graph.readers(layer.output[0]):
        if reader.op_type == "Add":
            places += [(reader, slot) for slot, name in enumerate(reader.input) if name in constants]
    if not places or not graph.value(places[0][0].input[places[0][1]]).any():
        raise NoSuchPlaceError
    return places[0]


@graph_fault("bias missing")
def _no_bias(graph: Graph) -> str:
    place = _bias(graph)
    name = graph.own(*place)
    graph.store(name, np.zeros_like(graph.value(name)))
    return name_of(place[0])


@graph_fault("bias of one channel by 1 %")
def _bias_percent(graph: Graph) -> str:
    place = _bias(graph)
    name = graph.own(*place)
    bias = graph.value(name)
    bias.flat[int(np.abs(bias).argmax())] *= np.float32(1.01)
    graph.store(name, bias)
    return name_of(place[0])


@graph_fault("weights transposed")
def _transposed(graph: Graph) -> str:
    layer, weights = middle(graph.quantized_layers())
    codes = graph.value(weights.input[0])
    if codes.shape[-1] != codes.shape[-2] or codes.shape[-1] == 1:
        raise NoSuchPlaceError
    graph.store(weights.input[0], np.ascontiguousarray(codes.swapaxes(-1, -2)))
    return name_of(layer)


def _float_layer(graph: Graph, *, last: bool) -> str:
    """One weight of the first or last float layer, by 1 % of the largest."""
    found = graph.float_layers()
    layer = middle(found[-1:] if last else found[:1])
    slot = next(slot for slot, name in enumerate(layer.input[:2]) if name in graph.constants)
    name = graph.own(layer, slot)
    weight = graph.value(name)
    weight.flat[0] += np.float32(0.01) * np.abs(weight).max()
    graph.store(name, weight)
    return name_of(layer)


graph_fault("float head: one weight by 1 %")(lambda graph: _float_layer(graph, last=False))
graph_fault("float tail: one weight by 1 %")(lambda graph: _float_layer(graph, last=True))
