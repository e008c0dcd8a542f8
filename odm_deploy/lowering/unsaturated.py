"""How a graph is given to runtimes on CPUs whose integer kernels would saturate its products: the numbers stay right.

ONNX Runtime has kernels that add in 32 bits, and an entry of its session asks for them. OpenVINO has none; there the
weights of such a layer are written as the floats that their codes stand for, which leaves that layer alone in float32.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from odm_deploy.graphs.index import GraphIndex, attribute
from odm_deploy.graphs.saturation import dequantizer_behind, saturating_products
from odm_deploy.machine.host import adds_in_16_bits
from odm_deploy.machine.saturating_kernels import openvino_saturates
from odm_deploy.progress import counted

_IN_32_BITS = {"session.x64quantprecision": "1"}
_ALL_IN_FLOAT = {"LP_TRANSFORMS_MODE": "NO"}


@dataclass(frozen=True)
class Unsaturated:
    """A graph as a runtime is to load it on this CPU."""

    model: bytes
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """For OpenVINO's compiler, or entries of an ONNX Runtime session."""
    speed_note: str = ""
    """What that costs, if it costs anything."""


def for_onnxruntime(model: bytes, graph: ModelProto) -> Unsaturated:
    """The graph for ONNX Runtime, which knows by itself whether its kernels would saturate where nothing else tells.

    Args:
        model: the graph, serialized.
        graph: the same, parsed.
    """
    saturates = adds_in_16_bits()
    layers = [] if saturates is False else saturating_products(graph.graph, only_weights=True)
    if not layers:
        return Unsaturated(model)
    copy = ModelProto()
    copy.CopyFrom(graph)
    _share_nothing(copy)
    note = _note(layers, "ONNX Runtime adds them in 32 bits, which takes longer") if saturates else ""
    return Unsaturated(copy.SerializeToString(), dict(_IN_32_BITS), note)


def for_openvino(model: bytes, graph: ModelProto) -> Unsaturated:
    """The graph for OpenVINO. Arguments as above."""
    layers = saturating_products(graph.graph, only_weights=False)
    if not layers or not openvino_saturates():
        return Unsaturated(model)
    copy = ModelProto()
    copy.CopyFrom(graph)
    everywhere = _write_floats(copy, set(layers)) < len(layers)
    note = _note(layers, f"OpenVINO multiplies {'everything' if everywhere else 'these'} in float32")
    return Unsaturated(copy.SerializeToString(), dict(_ALL_IN_FLOAT) if everywhere else {}, note)


def _note(layers: list[str], instead: str) -> str:
    return (
        f"this CPU has no VNNI instructions, and 8-bit products of {counted(len(layers), 'layer')} may saturate: "
        f"{instead}; models of quantize --any-cpu do without"
    )


def _share_nothing(model: ModelProto) -> None:
    """Give every reader of stored int8 numbers its own copy.

    ONNX Runtime makes unsigned ones under a name of theirs, once for each reader, and fails at the second.
    """
    graph, index = model.graph, GraphIndex(model.graph)
    dequantizers = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in index.stored
        and len(index.readers[node.output[0]]) > 1
    }
    nodes: list[NodeProto] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in dequantizers:
                own = NodeProto()
                own.CopyFrom(dequantizers[name])
                own.name = own.output[0] = node.input[place] = f"{node.output[0]}.own_input_{place}"
                nodes.append(own)
        nodes.append(node)
    readers = Counter(name for node in nodes for name in node.input)
    for node in nodes:
        for place, name in enumerate(node.input):
            if readers[name] > 1 and (stored := index.stored.get(name)) and stored.data_type == TensorProto.INT8:
                own = TensorProto()
                own.CopyFrom(stored)
                own.name = node.input[place] = f"{node.output[0]}.own_codes_{place}"
                graph.initializer.append(own)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _write_floats(model: ModelProto, layers: set[str]) -> int:
    """Store weights of these layers as floats; returns of how many."""
    index, written, floats = GraphIndex(model.graph), 0, dict[str, TensorProto]()
    for node in model.graph.node:
        if (node.name or node.output[0]) not in layers:
            continue
        for source in (dequantizer_behind(index, name) for name in node.input[:2]):
            levels = None if source is None else _levels(index, source)
            if source is not None and levels is not None:
                floats[source.output[0]] = numpy_helper.from_array(levels, source.output[0])
                written += 1
                break
    for source in [index.producers[name] for name in floats]:
        model.graph.node.remove(source)
    model.graph.initializer.extend(floats.values())
    return written


def _levels(index: GraphIndex, dequantizer: NodeProto) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """float32 that stored codes stand for; None for what is no such thing."""
    if attribute(dequantizer, "block_size", 0):
        return None
    stored = [index.value(name) for name in dequantizer.input if name]
    known = [array.astype(np.float32) for array in stored if array is not None]
    if len(known) < len(stored):
        return None
    codes, scale, *zero = known
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[attribute(dequantizer, "axis", 1)] = -1
    return (codes - zero[0].reshape(shape) if zero else codes) * scale.reshape(shape)
