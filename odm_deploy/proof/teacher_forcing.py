"""The teacher-forced graph: every layer judged on its own, from the reference's codes.

End to end, one rounding tie that falls the other way changes every layer behind it, so a comparison of final outputs
cannot tell a wrong layer from an unlucky one. Here every quantizer's codes become an output of the graph, and what runs
on behind the quantizer is fed with the *reference's* codes instead:

    source -> Q -> codes (new output)          given codes (new input) -> DQ -> Conv -> ...

The quantized convolutions stay what they are to a runtime, DQ -> Conv on int8, so their fusions stay too. A source that
something else reads in float, such as a skip connection, is cut in the same way: it becomes an output, and what reads
it is fed with the reference's. So whatever the teacher replaces is seen before, and no fault can hide behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from odm_deploy.building.build import build_plan
from odm_deploy.building.options import BuildOptions
from odm_deploy.errors import InputError
from odm_deploy.graphs.files import parse_onnx
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import infer_shapes, infer_types
from odm_deploy.lowering.metadata import Tap, read_taps
from odm_deploy.runtimes.base import Runtime

_T = TypeVar("_T", bound=np.generic)

GIVEN = ".given"
_IMAGE_RANK = 4
_TAKES_CODES = ("DequantizeLinear", "DepthToSpace", "Concat", "Clip")


@dataclass(frozen=True)
class ForcedGraph:
    """A lowered graph cut open at its quantizers."""

    model: onnx.ModelProto
    """Inputs: the image, `{codes}.given` per layer and `{source}.given` per source that something else reads too."""
    taps: list[Tap]
    """The layers, in network order; `{tap.codes}` is an output for each."""
    given_sources: dict[str, str]
    """Names of sources that are inputs and outputs too -> their ONNX element type, `float32` or `float16`."""


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
    # What is joined of several taps' codes is seen in these.
    codes = {tap.codes for tap in taps if not tap.same_as}
    sources = {tap.source for tap in taps}
    graph_inputs = {value.name for value in graph.input}
    entries = _quantizer_entries(model.graph, taps)
    given_sources: dict[str, str] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in codes and node.op_type in _TAKES_CODES:
                node.input[slot] = name + GIVEN
            elif name in sources - graph_inputs and node.output[0] not in entries:
                node.input[slot] = name + GIVEN
                half = types.get(name) == onnx.TensorProto.FLOAT16
                given_sources[name] = "float16" if half else "float32"
    # Convolutions read 4 dimensions, linear layers 3 or more.
    ranks = {name: len(kind.shape.dim) for name, kind in infer_types(model).items() if kind.HasField("shape")}

    def add_input(name: str, kind: int) -> None:
        sizes = [f"{name}{GIVEN}/{axis}" for axis in range(ranks.get(name, _IMAGE_RANK))]
        graph.input.append(helper.make_tensor_value_info(name + GIVEN, kind, sizes))

    for name in sorted(codes):
        kind = code_type(model, name)
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
        add_input(name, kind)
    for name, kind in given_sources.items():
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        graph.output.append(helper.make_tensor_value_info(name, element, None))
        add_input(name, element)
    # Outputs keep whatever rank and size they have: shapes between the cuts are the runtime's to infer.
    del graph.value_info[:]
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
    kinds = {value.name: value.type.tensor_type.elem_type for value in forced.model.graph.input}
    for tap in forced.taps:
        if tap.same_as:
            continue
        kind = helper.tensor_dtype_to_np_dtype(kinds.get(tap.codes + GIVEN, onnx.TensorProto.INT8))
        stored = as_in_graph(tap, codes[tap.layer].astype(np.int16) - tap.code_offset).astype(kind)
        feeds[tap.codes + GIVEN] = bordered(tap, stored, tap.zero_code - tap.code_offset)
        if tap.source in forced.given_sources:
            source = as_in_graph(tap, sources[tap.layer])
            feeds[tap.source + GIVEN] = source.astype(forced.given_sources[tap.source])
    return feeds


def bordered(tap: Tap, array: NDArray[_T], value: float) -> NDArray[_T]:
    """A quantizer's values, [N, C, H, W], with the border that it adds to them, filled with `value`."""
    if not any(tap.padding):
        return array
    return np.pad(array, [(0, 0), (0, 0), *((each, each) for each in tap.padding)], constant_values=value)


def code_type(model: onnx.ModelProto, codes: str) -> int:
    """The ONNX element type of a tap's codes, INT8 or UINT8: that of their quantizer's zero point."""
    index = GraphIndex(model.graph)
    node = index.producers.get(codes)
    while node is not None and node.op_type != "QuantizeLinear":
        node = index.producers.get(node.input[0])
    zero = None if node is None or len(node.input) < 3 else index.stored.get(node.input[2])
    return onnx.TensorProto.INT8 if zero is None else zero.data_type


def shuffled(array: NDArray[_T], block: int) -> NDArray[_T]:
    """DepthToSpace (CRD): [N, C*block^2, H, W] -> [N, C, block*H, block*W]."""
    if block == 1:
        return array
    n, c, h, w = array.shape
    cells = array.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return cells.reshape(n, c // block**2, h * block, w * block)


def unshuffled(array: NDArray[_T], block: int) -> NDArray[_T]:
    """What `shuffled` makes `array` of."""
    if block == 1:
        return array
    n, c, h, w = array.shape
    cells = array.reshape(n, c, h // block, block, w // block, block).transpose(0, 1, 3, 5, 2, 4)
    return cells.reshape(n, c * block**2, h // block, w // block)


def as_in_graph(tap: Tap, array: NDArray[_T]) -> NDArray[_T]:
    """A quantizer's values, [N, C, H, W] of the model, as the graph has them."""
    return _transposed(unshuffled(array, tap.block), -1, tap.by_pixel**2)


def as_in_model(tap: Tap, array: NDArray[_T]) -> NDArray[_T]:
    """What `as_in_graph` makes `array` of."""
    return shuffled(_transposed(array, tap.by_pixel**2, -1), tap.block)


def _transposed(array: NDArray[_T], rows: int, columns: int) -> NDArray[_T]:
    """Channels [N, C, ...] that are a matrix, row by row, as those of its transpose."""
    if 1 in (rows, columns):
        return array
    n, c, *rest = array.shape
    return array.reshape(n, rows, columns, *rest).swapaxes(1, 2).reshape(n, c, *rest)


def all_codes_from(tap: Tap, output: NDArray[np.integer]) -> NDArray[np.int16]:
    """The grid's codes behind a runtime's integer output, with the border that the quantizer added."""
    return as_in_model(tap, output.astype(np.int16) + tap.code_offset)


def codes_from(tap: Tap, output: NDArray[np.integer]) -> NDArray[np.int16]:
    """The same without the border."""
    codes = all_codes_from(tap, output)
    (rows, columns), (height, width) = tap.padding, codes.shape[-2:]
    return codes[..., rows : height - rows, columns : width - columns]


def forced_engine_opener(
    runtime: Runtime, lowered: onnx.ModelProto, size: tuple[int, int], *, tf32: bool
) -> Callable[[bytes], Runtime]:
    """What opens a teacher-forced graph with the builder of an open engine; for `compare_layers`.

    An engine has fused its layers beyond recognition, and none of its tensors can be watched. So a second one is built
    by the same builder from the graph cut open at its quantizers: the same convolutions on int8, told apart. It is
    built for one image size, which settles the sizes of everything between the cuts.

    Args:
        runtime: the engine under test.
        lowered: the graph it was built from.
        size: height and width of the images to compare on, in pixels.
        tf32: how the engine was built.
    """

    def open_bytes(forced: bytes) -> Runtime:
        model = parse_onnx(forced)
        fix_shapes(model, lowered, size)
        options = BuildOptions(builder=runtime.name, shapes=InputShapes.static(1, *size), tf32=tf32)
        plan = build_plan(model, options)
        return type(runtime).open_bytes(plan, label="the engine of the cut graph")

    return open_bytes


def fix_shapes(forced: onnx.ModelProto, lowered: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Replace the dynamic dimensions of a teacher-forced graph's inputs, in place.

    Args:
        forced: the graph, cut open.
        lowered: the graph it was cut from, which tells what lies between the cuts.
        size: height and width of the image, in pixels.

    Raises:
        InputError: the graph computes sizes in a way that cannot be followed.
    """
    shapes = infer_shapes(lowered, InputShapes.static(1, *size))
    for value in forced.graph.input:
        shape = shapes.get(value.name.removesuffix(GIVEN))
        dims = value.type.tensor_type.shape.dim
        if shape is None or len(shape) != len(dims):
            raise InputError("cannot check this graph layer by layer", why=f"the size of {value.name} is not known")
        for dim, extent in zip(dims, shape, strict=True):
            dim.dim_value = extent


def _quantizer_entries(graph: onnx.GraphProto, taps: list[Tap]) -> set[str]:
    """First output of each node with which a layer's quantizer begins: walking back from its codes to its source."""
    producers = GraphIndex(graph).producers
    entries: set[str] = set()
    for tap in taps:
        if tap.codes not in producers:
            raise InputError("the model's metadata is damaged", why=f"{tap.layer}: no tensor {tap.codes}")
        node = producers[tap.codes]
        while tap.source not in node.input:
            if node.input[0] not in producers:
                why = f"{tap.layer}: no path from its codes to its source"
                raise InputError("the model's metadata is damaged", why=why)
            node = producers[node.input[0]]
        entries.add(node.output[0])
    return entries
