"""The teacher-forced graph: every layer judged on its own, from the reference's codes.

End to end, one rounding tie that falls the other way changes every layer behind it, so a comparison of final outputs
cannot tell a wrong layer from an unlucky one. Here every quantizer's codes become an output of the graph, and what runs
on behind the quantizer is fed with the *reference's* codes instead:

    source -> Q -> codes (new output)          given codes (new input) -> DQ -> Conv -> ...

The quantized convolutions stay what they are to a runtime, DQ -> Conv on int8, so their fusions stay too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.shapes import infer_types
from odm_deploy.lowering.taps import Tap, read_taps

GIVEN = ".given"
_IMAGE_RANK = 4


@dataclass(frozen=True)
class ForcedGraph:
    """A lowered graph cut open at its quantizers."""

    model: onnx.ModelProto
    """Inputs: the image, `{codes}.given` per layer and `{source}.given` per source that something else reads too."""
    taps: list[Tap]
    """The layers, in network order; `{tap.codes}` is an output for each."""
    given_sources: dict[str, str]
    """Names of sources that are inputs too -> their ONNX element type, `float32` or `float16`."""


def force_by_teacher(model: onnx.ModelProto) -> ForcedGraph:
    """Cut a lowered graph open; `model` is left as it is.

    Raises:
        InputError: a graph without taps (not lowered by this program).
    """
    taps = read_taps(model)
    if not taps:
        raise InputError(
            "cannot check this graph layer by layer",
            why="it does not say where its quantizers are",
            fix="check a model.onnx written by odm-deploy export, or leave the layers out with --no-layers",
        )
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    codes = {tap.codes for tap in taps}
    sources = {tap.source for tap in taps}
    graph_inputs = {value.name for value in graph.input}
    entries = {_quantizer_entry(graph, tap): tap for tap in taps}
    given_sources: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name in codes and node.op_type == "DequantizeLinear":
                node.input[slot] = name + GIVEN
            elif name in sources - graph_inputs and index not in entries:
                node.input[slot] = name + GIVEN
                half = types.get(name) == onnx.TensorProto.FLOAT16
                given_sources[name] = "float16" if half else "float32"
    ranks = _ranks(model)
    for name in sorted(codes):
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
        graph.input.append(_dynamic_input(name + GIVEN, onnx.TensorProto.INT8, ranks.get(name, _IMAGE_RANK)))
    for name, kind in given_sources.items():
        graph.input.append(
            _dynamic_input(name + GIVEN, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ranks.get(name, _IMAGE_RANK))
        )
    _rank_free(cut)
    return ForcedGraph(cut, taps, given_sources)


def feeds_for(
    forced: ForcedGraph, sources: dict[str, NDArray[np.float32]], codes: dict[str, NDArray[np.uint8]]
) -> dict[str, NDArray[np.generic]]:
    """The reference's values as inputs of the forced graph, without the image.

    Args:
        forced: the graph.
        sources: float input of each layer's quantizer, by layer.
        codes: the reference's codes, by layer, 0 .. 2^bits - 1, without the padding of `tap.padding`.
    """
    feeds: dict[str, NDArray[np.generic]] = {}
    for tap in forced.taps:
        signed = (codes[tap.layer].astype(np.int16) - tap.code_offset).astype(np.int8)
        if tap.padding:
            border = [(0, 0), (0, 0), (tap.padding,) * 2, (tap.padding,) * 2]
            signed = np.pad(signed, border, constant_values=tap.zero_code - tap.code_offset)
        feeds[tap.codes + GIVEN] = signed
        if tap.source in forced.given_sources:
            feeds[tap.source + GIVEN] = sources[tap.layer].astype(forced.given_sources[tap.source])
    return feeds


def codes_from(tap: Tap, output: NDArray[np.int8]) -> NDArray[np.int16]:
    """The grid's codes behind a runtime's integer output, padding removed."""
    inner = output
    if tap.padding:
        inner = output[..., tap.padding : -tap.padding, tap.padding : -tap.padding]
    return inner.astype(np.int16) + tap.code_offset


def _quantizer_entry(graph: onnx.GraphProto, tap: Tap) -> int:
    """Index of the node with which a layer's quantizer begins: walking back from its codes to its source."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output}
    if tap.codes not in producer:
        raise InputError("the model's metadata is damaged", why=f"{tap.layer}: no tensor {tap.codes}")
    index = producer[tap.codes]
    while tap.source not in graph.node[index].input:
        upstream = graph.node[index].input[0]
        if upstream not in producer:
            raise InputError(
                "the model's metadata is damaged", why=f"{tap.layer}: no path from its codes to its source"
            )
        index = producer[upstream]
    return index


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Dimensions of every tensor, as far as can be inferred: convolutions read 4 of them, linear layers 3 or more."""
    return {name: len(kind.shape.dim) for name, kind in infer_types(model).items() if kind.HasField("shape")}


def _dynamic_input(name: str, kind: int, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [f"{name}/{axis}" for axis in range(rank)])


def _rank_free(model: onnx.ModelProto) -> None:
    """Let outputs keep whatever rank and size they have: shapes between the cuts are the runtime's to infer."""
    del model.graph.value_info[:]
