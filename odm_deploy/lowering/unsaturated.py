"""How a graph is given to runtimes on CPUs whose integer kernels would saturate its products: the numbers stay right.

ONNX Runtime has kernels that add in 32 bits, and an entry of its session asks for them. OpenVINO has none; there the
weights of such a layer are written as the floats that their codes stand for, which leaves that layer alone in float32.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from odm_deploy.graphs.constants import ConstantIndex, per_code
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.graphs.saturation import MAX_WEIGHTS, axis_and_block, dequantizer_behind, saturating_products
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
    in_float: tuple[str, ...] = ()
    """Names of the nodes that are multiplied in float32 because their integer products may saturate."""


def for_onnxruntime(model: bytes, graph: ModelProto) -> Unsaturated:
    """The graph for ONNX Runtime, which knows by itself whether its kernels would saturate where nothing else tells.

    Args:
        model: the graph, serialized.
        graph: the same, parsed.
    """
    saturates = adds_in_16_bits()
    whole = _inlined(graph)
    layers = [] if saturates is False else saturating_products(whole.graph, only_weights=True)
    if not layers:
        return Unsaturated(model)
    copy = _with_stored_constants(whole)
    _add_zero_points(copy)
    _make_unsigned(copy)
    _share_nothing(copy)
    note = _note(layers, "ONNX Runtime adds them in 32 bits, which takes longer") if saturates else ""
    return Unsaturated(copy.SerializeToString(), dict(_IN_32_BITS), note)


def for_openvino(model: bytes, graph: ModelProto) -> Unsaturated:
    """The graph for OpenVINO. Arguments as above.

    On any CPU OpenVINO ignores zero points of transposed convolutions' weights: these are written as floats, too.
    """
    whole = _inlined(graph)
    found = saturating_products(whole.graph, only_weights=False)
    saturating = found if found and openvino_saturates() else []
    layers = set(saturating) | _transposed_around_zero_points(whole)
    if not layers:
        return Unsaturated(model)
    copy = _with_stored_constants(whole)
    everywhere = _write_floats(copy, layers) < len(layers)
    note = _note(saturating, f"OpenVINO multiplies {'everything' if everywhere else 'these'} in float32")
    settings = dict(_ALL_IN_FLOAT) if everywhere else dict[str, Any]()
    return Unsaturated(copy.SerializeToString(), settings, note if saturating else "", tuple(saturating))


def _transposed_around_zero_points(model: ModelProto) -> set[str]:
    """Names of transposed convolutions whose weights' zero points are not plainly zero."""
    index, found = ConstantIndex(model.graph), set[str]()
    for node in model.graph.node:
        source = dequantizer_behind(index, node.input[1]) if node.op_type == "ConvTranspose" else None
        if source is not None and len(source.input) > 2 and source.input[2]:
            zero = index.value(source.input[2])
            if zero is None or zero.any():
                found.add(node.name or node.output[0])
    return found


def _note(layers: list[str], instead: str) -> str:
    return (
        f"this CPU has no VNNI instructions, and 8-bit products of {counted(len(layers), 'layer')} may saturate: "
        f"{instead}; models of quantize --any-cpu do without"
    )


def _inlined(model: ModelProto) -> ModelProto:
    """The model without local functions, whose layers runtimes optimize as those of the graph."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _with_stored_constants(model: ModelProto) -> ModelProto:
    """A copy in which inputs of dequantizers are stored, if the graph computes them from nothing but constants."""
    copy = ModelProto()
    copy.CopyFrom(model)
    index, added = ConstantIndex(copy.graph, max_size=MAX_WEIGHTS), set[str]()
    for node in copy.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type == "DequantizeLinear" and name and name not in index.stored:
                stored = f"{name}.stored"
                if stored not in added and (value := index.value(name)) is not None:
                    copy.graph.initializer.append(numpy_helper.from_array(value, stored))
                    added.add(stored)
                if stored in added:
                    node.input[place] = stored
    return copy


def _add_zero_points(model: ModelProto) -> None:
    """Give dequantizers of stored int8 numbers the zeros that they mean by none.

    ONNX Runtime makes these numbers unsigned, around 128, and takes one 128 for as many scales as there are.
    """
    index = GraphIndex(model.graph)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len([name for name in node.input if name]) == 2:
            codes, scale = index.stored.get(node.input[0]), index.value(node.input[1])
            if codes is not None and codes.data_type == TensorProto.INT8 and scale is not None:
                zeros = numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{node.output[0]}.zero")
                model.graph.initializer.append(zeros)
                node.input[:] = [*node.input[:2], zeros.name]


def _make_unsigned(model: ModelProto) -> None:
    """Store int8 weights of QLinearMatMul on unsigned codes around 128: ONNX Runtime passes over that of opset 21."""
    index = GraphIndex(model.graph)
    for node in model.graph.node:
        if node.op_type == "QLinearMatMul":
            signal, codes, zero = (index.value(node.input[place]) for place in (2, 3, 5))
            if (
                signal is not None
                and signal.dtype == np.uint8
                and codes is not None
                and codes.dtype == np.int8
                and zero is not None
            ):
                for place, array in ((3, codes), (5, zero)):
                    unsigned = (array.astype(np.int16) + 128).astype(np.uint8)
                    name = f"{node.output[0]}.unsigned_{place}"
                    model.graph.initializer.append(numpy_helper.from_array(unsigned, name))
                    node.input[place] = name


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
    stored = [index.value(name) for name in dequantizer.input if name]
    known = [array.astype(np.float32) for array in stored if array is not None]
    if len(known) < len(stored):
        return None
    codes, scale, *zero = known
    axis, block = axis_and_block(dequantizer)
    around = codes - per_code(zero[0], codes.shape, axis, block) if zero else codes
    return around * per_code(scale, codes.shape, axis, block)
