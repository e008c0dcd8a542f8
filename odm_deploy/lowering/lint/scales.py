"""Rules about the numbers scales may be, for activations and weights alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from odm_deploy.lowering.lint.finding import Hit, Severity, rule
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph
from odm_deploy.lowering.lint.operands import layers_behind

Scales = npt.NDArray[np.float64]

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@rule(
    "scale-not-positive",
    Severity.ERROR,
    fix="give dead channels any positive scale, for example that of their neighbours",
)
def scale_not_positive(graph: QdqGraph) -> Iterator[Hit]:
    """One scale that is zero, negative or NaN is a parse error; a channel whose weights are all zero is enough."""
    return _scales_that(graph, lambda scale: ~(scale > 0))


@rule("scale-out-of-range", Severity.SATURATES, fix="find out which observer or file made that scale")
def scale_out_of_range(graph: QdqGraph) -> Iterator[Hit]:
    """Infinite and subnormal scales build without a word and compute nonsense: everything becomes 0 or saturates."""
    return _scales_that(graph, lambda scale: np.isposinf(scale) | ((scale > 0) & (scale < _SMALLEST_NORMAL)))


@rule(
    "scale-at-run-time",
    Severity.ERROR,
    fix="use a static scale: quantize with ranges found in training or calibration",
)
def scale_at_run_time(graph: QdqGraph) -> Iterator[Hit]:
    """A scale computed from the input crashes the builder: TensorRT-RTX 1.7 ends in a segmentation fault."""
    for node, layers in _users_of_scales(graph):
        if not graph.is_constant(node.input[1]):
            yield graph.name(node), f"scale {node.input[1]!r} is computed at run time", layers


def _users_of_scales(graph: QdqGraph) -> Iterator[tuple[NodeProto, tuple[str, ...]]]:
    """For every scale tensor the first Q or DQ node that uses it, and the layers behind all of them."""
    users: dict[str, list[NodeProto]] = {}
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        users.setdefault(node.input[1], []).append(node)
    for nodes in users.values():
        yield nodes[0], layers_behind(graph, *nodes)


def _scales_that(graph: QdqGraph, are_bad: Callable[[Scales], npt.NDArray[np.bool_]]) -> Iterator[Hit]:
    """Hits for every scale tensor with an element that `are_bad` marks."""
    for node, layers in _users_of_scales(graph):
        scale = graph.scale(node)
        if scale is None:
            continue
        flat = scale.reshape(-1)
        bad = np.flatnonzero(are_bad(flat))
        if bad.size:
            where = f" (channels {_first(bad.tolist())})" if flat.size > 1 else ""
            yield graph.name(node), f"scale {flat[bad[0]]:g}{where}", layers


def _first(indices: list[int], limit: int = 4) -> str:
    shown = ", ".join(map(str, indices[:limit]))
    return shown if len(indices) <= limit else f"{shown} and {len(indices) - limit} more"
