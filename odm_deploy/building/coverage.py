"""How much of a quantized graph an engine really runs as int8, by layers and by multiply-accumulates.

What the graph asks for comes from the ONNX file, what runs from the engine's layer table, and why the two differ from
`lint`: TensorRT itself says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from odm_deploy.building.layer_table import LayerRecord, find_compute_layer
from odm_deploy.graphs.files import read_onnx
from odm_deploy.graphs.index import attribute
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import Shapes, infer_shapes
from odm_deploy.lowering.lint import Finding, lint
from odm_deploy.lowering.lint.graph import QdqGraph
from odm_deploy.lowering.lint.operands import LAYER_TYPES, Layer, find_layers
from odm_deploy.progress import counted

MISSING = "missing"
"""What a layer runs as that nothing names."""
NOTHING = 0.0005
"""Share of the multiply-accumulates that is written 0.0 %."""
_AMBIGUOUS = "unknown"
_EINSUM = "Einsum"
_IN_FLOAT = "float in this model"


@dataclass(frozen=True)
class LayerCoverage:
    """One convolution or matrix product of the graph, and what became of it."""

    name: str
    """Name of the ONNX node."""
    op: str
    quantized: bool
    """Whether one of its operands is dequantized just before: somebody wanted it in int8."""
    precision: str
    """What it runs as: `int8`, `fp16`, `fp32`, ...; `missing` where no engine layer names it, `unknown` where several
    ONNX layers share the name."""
    reason: str
    """Why it does not run as int8; empty when it does."""
    macs: int | None
    """Multiply-accumulates at the given input shape; None where shapes cannot be inferred."""
    engine_layer: str
    """The engine layer that computes it; empty when unknown."""
    rules: tuple[str, ...] = ()
    """The rules of `lint` that explain why it does not run as int8."""
    weight_bits: int | None = None
    activation_bits: int | None = None
    """Widths of its codes, as the bundle's manifest says; None for float layers and for a graph without a manifest."""


@dataclass(frozen=True)
class Coverage:
    """All layers of a graph with what they run as."""

    layers: tuple[LayerCoverage, ...]

    @property
    def quantized_layers(self) -> int:
        """Layers the graph asks to run as int8."""
        return sum(layer.quantized for layer in self.layers)

    @property
    def int8_layers(self) -> int:
        """Layers that run as int8."""
        return sum(layer.precision == "int8" for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers whose shapes are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def quantized_macs(self) -> int:
        """The part of `macs` the graph asks to run as int8."""
        return sum(layer.macs or 0 for layer in self.layers if layer.quantized)

    @property
    def int8_macs(self) -> int:
        """The part of `macs` that runs as int8."""
        return sum(layer.macs or 0 for layer in self.layers if layer.precision == "int8")

    def int8_share(self, noun: str = "MACs") -> str:
        """What part of the multiply-accumulates runs as int8, to go on a sentence; empty where none can be counted."""
        if not self.macs:
            return ""
        unknown = sum(layer.macs is None for layer in self.layers)
        known = counted(len(self.layers) - unknown, "layer")
        what = f"the {noun} of {known}, those of {unknown} more are not known" if unknown else f"all {noun}"
        return f", {self.int8_macs / self.macs:.1%} of {what}"

    @property
    def fallbacks(self) -> tuple[LayerCoverage, ...]:
        """Layers that should run as int8 and do not."""
        return tuple(layer for layer in self.layers if layer.quantized and layer.precision != "int8")

    @property
    def fallbacks_matter(self) -> bool:
        """Whether `fallbacks` have a part of the work: not layers of a few numbers, such as those of channel attention,
        which no builder computes in int8.
        """
        macs = [layer.macs for layer in self.fallbacks]
        return not self.int8_layers or None in macs or sum(count or 0 for count in macs) >= NOTHING * self.macs

    def to_dict(self) -> dict[str, Any]:
        """The keys of `inspect --json`."""
        sums = ("quantized_layers", "int8_layers", "macs", "quantized_macs", "int8_macs")
        return {name: getattr(self, name) for name in sums} | {"layers": [asdict(layer) for layer in self.layers]}


def coverage(
    model: ModelProto | Path | str,
    layers: Sequence[LayerRecord],
    sizes: InputShapes | None = None,
    *,
    reasons: Mapping[str, str] | None = None,
) -> Coverage:
    """Compare what a graph asks for with what an engine built from it does.

    Args:
        model: the ONNX graph the engine was built from, or its path.
        layers: the engine's layers (`BuildReport.layers`).
        sizes: input shapes; multiply-accumulates are counted at its `opt` shape. None: at the graph's own shape, if
            it has one.
        reasons: why layers are not int8, by their names; None: what `lint` knows of TensorRT.

    Raises:
        InputError: the ONNX file cannot be read.
    """
    loaded = model if isinstance(model, ModelProto) else read_onnx(Path(model))[0]
    graph = QdqGraph(loaded)
    findings = lint(loaded) if reasons is None else []
    shapes = infer_shapes(graph.model, sizes)
    asked = find_layers(graph)
    names = Counter(layer.name for layer in asked)
    by_output = {layer.node.output[0]: layer for layer in asked}
    covered: list[LayerCoverage] = []
    for node in graph.of_type(*LAYER_TYPES, _EINSUM):
        if node.op_type == _EINSUM:
            if (macs := count_macs(graph, node, shapes)) != 0:
                covered.append(_einsum(graph.name(node), find_compute_layer(layers, graph.name(node)), macs))
            continue
        layer = by_output[node.output[0]]
        unique = names[layer.name] == 1
        record = find_compute_layer(layers, layer.name) if unique else None
        precision = record.precision if record else MISSING if unique else _AMBIGUOUS
        about = [] if precision == "int8" else [finding for finding in findings if layer.name in finding.layers]
        covered.append(
            LayerCoverage(
                name=layer.name,
                op=layer.node.op_type,
                quantized=layer.quantized,
                precision=precision,
                reason="" if precision == "int8" else _reason(layer, record, about, reasons),
                macs=count_macs(graph, layer.node, shapes),
                engine_layer=record.name if record else "",
                rules=tuple(dict.fromkeys(finding.rule for finding in about)) if layer.quantized else (),
            )
        )
    return Coverage(tuple(covered))


def _einsum(name: str, record: LayerRecord | None, macs: int | None) -> LayerCoverage:
    """A matrix product that no runtime has in integers."""
    precision = record.precision if record else MISSING
    return LayerCoverage(name, _EINSUM, False, precision, _IN_FLOAT, macs, record.name if record else "")


def count_macs(graph: QdqGraph, node: NodeProto, shapes: Shapes) -> int | None:
    """Multiply-accumulates of a Conv, ConvTranspose, Gemm, MatMul or Einsum; None where a shape is missing.

    A convolution does (input channels / groups) * kernel area of them for every output value; its transpose does
    (output channels / groups) * kernel area for every input value.
    """
    if node.op_type == _EINSUM:
        return _einsum_macs(node, [shapes.get(name) for name in node.input])
    first, second, output = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if first is None or second is None or output is None:
        return None
    if node.op_type == "Conv":
        return prod(output) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    transposed = node.op_type == "Gemm" and attribute(node, "transA", 0)
    return prod(output) * (first[-2] if transposed else first[-1])


def _einsum_macs(node: NodeProto, operands: Sequence[tuple[int, ...] | None]) -> int | None:
    """Of two operands, every combination of indices; 0 where nothing is summed up; None where indices are not named."""
    read, _, written = attribute(node, "equation", b"").decode().replace(" ", "").partition("->")
    terms = read.split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=False):
        if shape is None or len(shape) != len(term):
            return None
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    if len(terms) != 2 or not set(terms[0]) & set(terms[1]) - set(written):
        return 0 if len(terms) <= 2 else None
    return prod(sizes.values())


def _reason(
    layer: Layer, record: LayerRecord | None, about: Sequence[Finding], reasons: Mapping[str, str] | None
) -> str:
    """Why a layer is not int8: what its runtime or lint tells about it, or that nobody asked."""
    if not layer.quantized:
        return _IN_FLOAT
    if reasons and layer.name in reasons:
        return reasons[layer.name]
    if about:
        return "; ".join(f"{finding.message} [{finding.rule}]" for finding in about)
    if record is None:
        return f"no layer of the {'engine' if reasons is None else 'runtime'} names it"
    if record.kind in ("Conv", "FusedConv"):
        return "nothing quantizes its output at once, as ONNX Runtime wants it (profile integer does)"
    if reasons is not None:
        return f"the runtime computes it in {record.kind}, in float"
    return f"no known trap: the builder chose {record.kind or 'another kernel'}"
