"""The constants of a graph that another version wired otherwise, as far as places and values tell.

Layers and quantizers have names in every version's graphs, and behind each of them both graphs are followed anew. What
stands where the other graph has nothing like it is known by its value: it has to be a number of the model.pt, or one
that lowering makes of it for some runtime. A number that is neither is a fault, and so is a layer's own that is gone.
Whether all of them stand where they belong is left to the comparison of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from odm_deploy.graphs.differences import Allow, GraphDifferences, difference, differences
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.lowering.metadata import read_taps
from odm_deploy.quantization.model import QuantizedModel

_NAMED_AFTER_LAYERS = ("Conv", "Gemm", "MatMul")
_COUNTS = "ib"
"""Kinds of numpy types that count axes, sizes and places: wiring. Codes are of one byte, and no counts."""

Array = NDArray[Any]
Content = tuple[str, int, bytes]


def differences_in_constants(
    found: ModelProto, expected: ModelProto, others: Sequence[ModelProto], model: QuantizedModel, allow: Allow
) -> GraphDifferences:
    """Compare the constants of two graphs of `model` that may be wired differently.

    Args:
        found: the graph in question.
        expected: what the model lowers to; clauses use its names.
        others: what it lowers to for other runtimes, which the one in question may have been alike.
        model: whose numbers they hold.
        allow: as `differences` has it.
    """
    known = _Known(model, [expected, *others])

    def is_known(name: str, a: Array, b: Array) -> bool:
        return allow(name, a, b) or _content(a) in {_content(b), *known.of(name)}

    result = differences(found, expected, is_known, _anchors(found, expected))
    stored = [_reached(graph) for graph in (found, expected)]
    placed = [{pair[side] for pair in result.pairs} for side in (0, 1)]
    # What has a place on neither side, by value.
    left, missing = (
        {name: value for name, value in values.items() if name not in done}
        for values, done in zip(stored, placed, strict=True)
    )
    contents = {_content(value) for value in stored[0].values()}
    for name, value in left.items():
        if value.any() and _content(value) not in known.all and not any(allow(n, value, b) for n, b in missing.items()):
            result.constants.append(_unknown(name, value, missing))
    result.constants += (
        f"{name} is nowhere in the graph"
        for name, value in missing.items()
        if known.of(name) and _is_needed(name, value) and not contents & known.of(name)
    )
    return result


def _is_needed(name: str, value: Array) -> bool:
    """Whether a layer's number has to be there in any wiring: scales, and what is more than one value over and over.

    Bounds, borders and zeros stand where one runtime or another wants them.
    """
    _, values, _ = _content(value)
    return _role(name).endswith((".scale", ".scale_x")) or values > 1


class _Known:
    """Numbers of a model, and what lowering makes of them, by what they are of which layer."""

    def __init__(self, model: QuantizedModel, graphs: Sequence[ModelProto]) -> None:
        self._by_name: dict[str, set[Content]] = {}
        self.all: set[Content] = set()
        layers = {*(name.rpartition(".")[0] for name, _ in self._of_checkpoint(model)), *model.signals}
        for name, value in self._of_checkpoint(model):
            self._add(name, value)
        for name, value in (item for graph in graphs for item in _reached(graph).items()):
            self.all.add(_content(value))
            if name.rpartition(".")[0] in layers:
                self._add(name, value)

    @staticmethod
    def _of_checkpoint(model: QuantizedModel) -> Iterator[tuple[str, Array]]:
        tensors = {**dict(model.network.named_buffers()), **model.network.state_dict()}
        return ((name, value.detach().numpy()) for name, value in tensors.items())

    def _add(self, name: str, value: Array) -> None:
        self._by_name.setdefault(_role(name), set()).add(_content(value))
        self.all.add(_content(value))

    def of(self, name: str) -> set[Content]:
        """The values that what goes by this name in a lowered graph may have; empty for what is of no layer."""
        return self._by_name.get(_role(name), set())


def _role(name: str) -> str:
    """`body.0.codes` of body.0.codes_moved: which number of which layer. Names with _x are of a quantizer."""
    layer, _, what = name.rpartition(".")
    kind = what.partition("_")[0]
    return f"{layer}.{kind}_x" if "_x" in what else f"{layer}.{kind}"


def _content(value: Array) -> Content:
    """Equal where values are, whatever their shape; one value counts as often as it is told."""
    flat = np.ascontiguousarray(value).reshape(-1)
    if flat.size > 1 and (flat.view(f"V{flat.itemsize}") == flat[:1].view(f"V{flat.itemsize}")).all():
        flat = flat[:1]
    return str(value.dtype), flat.size, flat.tobytes()


def _anchors(found: ModelProto, expected: ModelProto) -> list[tuple[str, str]]:
    """Tensors of both graphs that have to be the same: outputs of layers, and codes that quantizers give."""
    pairs = dict[str, str]()
    for places in (_outputs_of_layers, _codes):
        a, b = places(found), places(expected)
        pairs.update((b[name], a[name]) for name in b if name in a)
    return [(a, b) for b, a in pairs.items()]


def _outputs_of_layers(graph: ModelProto) -> dict[str, str]:
    return {node.name: node.output[0] for node in graph.graph.node if node.op_type in _NAMED_AFTER_LAYERS and node.name}


def _codes(graph: ModelProto) -> dict[str, str]:
    return {tap.layer: tap.codes for tap in read_taps(graph) if not tap.joined}


def _reached(graph: ModelProto) -> dict[str, Array]:
    """Constants that outputs of a graph depend on, but for those that count."""
    index, waiting = GraphIndex(graph.graph), [each.name for each in graph.graph.output]
    reached, result = set[str](), dict[str, Array]()
    while waiting:
        name = waiting.pop()
        if not name or name in reached:
            continue
        reached.add(name)
        if (value := index.stored_value(name)) is not None:
            if value.dtype.kind not in _COUNTS or value.dtype.itemsize == 1:
                result[name] = value
        elif (node := index.producers.get(name)) is not None:
            waiting += node.input
    return result


def _unknown(name: str, value: Array, missing: dict[str, Array]) -> str:
    """A clause about a constant that is none of the model's, next to the one that it is likely instead of."""
    alike = {n: b for n, b in missing.items() if (b.dtype, b.shape) == (value.dtype, value.shape)}
    if not alike:
        shown = f"{value.reshape(-1)[0]!s}" if value.size == 1 else f"{value.dtype} {list(value.shape)}"
        return f"{name}, {shown}, is no number that model.pt lowers to"
    nearest = name if name in alike else min(alike, key=lambda n: int((alike[n] != value).sum()))
    return difference(nearest, value, alike[nearest])
