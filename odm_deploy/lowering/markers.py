"""The marked graph: the reference model in ONNX, with one marker node per activation quantizer and per weight.

    odm.FakeQuantize(x) -> x^              attributes: name, scale, zero_point, bits[, center]
    odm.DequantizeWeight(codes, scale)     attribute:  name

Those in front of a layer have the layer's name, as its weight has, and that layer alone reads what they give. All
others are signals (`quantization.signals`), named after the module that made them (`body.0.sum.output`), and anybody
may read them, rectifiers and layers' own quantizers of the same grid among them, which then change nothing.

No runtime executes these nodes; `dialects` replace them. A graph that keeps one after lowering is a bug.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from odm_deploy.grid import Grid
from odm_deploy.lowering.metadata import run_name
from odm_deploy.lowering.tracing import TranslationTable, trace
from odm_deploy.quantization.model import QuantizedModel

DOMAIN = "odm"
FAKE_QUANTIZE = "FakeQuantize"
DEQUANTIZE_WEIGHT = "DequantizeWeight"


def _marker(name: str, inputs: list[tuple[str, str]], attributes: list[OpSchema.Attribute]) -> Op:
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(label, kind) for label, kind in inputs],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=attributes,
    )
    return Op(Opset(DOMAIN, 1), name, schema)


_AttrType = OpSchema.AttrType
_fake_quantize_op = _marker(
    FAKE_QUANTIZE,
    [("x", "tensor(float)")],
    [
        OpSchema.Attribute("name", _AttrType.STRING, "layer"),
        OpSchema.Attribute("scale", _AttrType.FLOAT, "distance between levels"),
        OpSchema.Attribute("zero_point", _AttrType.INT, "code of zero"),
        OpSchema.Attribute("bits", _AttrType.INT, "width of a code"),
        OpSchema.Attribute("center", _AttrType.FLOATS, "value of the middle code, on free grids", required=False),
    ],
)
_dequantize_weight_op = _marker(
    DEQUANTIZE_WEIGHT,
    [("codes", "tensor(int8)"), ("scale", "tensor(float)")],
    [OpSchema.Attribute("name", _AttrType.STRING, "layer")],
)


def _translate_fake_quantize(x: Any, scale: float, zero_point: int, bits: int, center: float | None, name: str) -> Any:
    grid = {} if center is None else {"center": [center]}
    return _fake_quantize_op(x, scale=scale, zero_point=zero_point, bits=bits, name=name, **grid)


def _translate_dequantize_weight(codes: Any, scale: Any, name: str) -> Any:
    return _dequantize_weight_op(codes, scale, name=name)


def export_marked(model: QuantizedModel, begin: Callable[[], None] = lambda: None) -> ir.Model:
    """The marked graph of a quantized model, with dynamic N, H and W; input `input`, output `output`, float32.

    `begin` is called when each of `TRACE_PARTS` begins.

    A foreign network whose code fixes the batch size gets a graph for one image at a time.

    Raises:
        InputError: the network does something the exporter cannot follow, or is another function at other sizes.
    """
    table: TranslationTable = {
        torch.ops.odm.fake_quantize.default: _translate_fake_quantize,
        torch.ops.odm.dequantize_weight.default: _translate_dequantize_weight,
    }
    program, batch = trace(model, table, begin)
    marked = program.model
    _name_dimensions(marked, model.scale, "n" if batch is None else batch)
    _forget_origin(marked)
    _name_layers(marked)
    return marked


def grid_of(node: ir.Node) -> Grid:
    """The grid a `FakeQuantize` marker carries."""
    center = node.attributes.get("center")
    return Grid(
        node.attributes["scale"].as_float(),
        node.attributes["zero_point"].as_int(),
        node.attributes["bits"].as_int(),
        None if center is None else center.as_floats()[0],
    )


def layer_of(node: ir.Node) -> str:
    """The dotted layer name a marker carries."""
    return node.attributes["name"].as_string()


def is_quantizer(node: ir.Node | None) -> bool:
    """Whether a node is a `FakeQuantize` marker."""
    return node is not None and node.domain == DOMAIN and node.op_type == FAKE_QUANTIZE


def is_weight(node: ir.Node | None) -> bool:
    """Whether a node is a `DequantizeWeight` marker."""
    return node is not None and node.domain == DOMAIN and node.op_type == DEQUANTIZE_WEIGHT


def block_of(node: ir.Node) -> int:
    """The block size of the pixel shuffle that a quantizer was moved in front of; 1: none."""
    return node.attributes["block"].as_int() if "block" in node.attributes else 1


def others_of(node: ir.Node) -> list[tuple[str, int]]:
    """Names of the quantizers that a quantizer stands for besides its own, and their `block_of`."""
    if "others" not in node.attributes:
        return []
    names, blocks = node.attributes["others"].as_strings(), node.attributes["other_blocks"].as_ints()
    return list(zip(names, blocks, strict=True))


def stand_for(node: ir.Node, others: list[tuple[str, int]]) -> None:
    """Let a quantizer stand for these, too."""
    found = [*others_of(node), *others]
    node.attributes["others"] = ir.AttrStrings("others", [name for name, _ in found])
    node.attributes["other_blocks"] = ir.AttrInt64s("other_blocks", [block for _, block in found])


def mark_rectified(node: ir.Node) -> None:
    """Note that a quantizer gives no level below zero."""
    node.attributes["rectified"] = ir.AttrInt64("rectified", 1)


def is_rectified(node: ir.Node) -> bool:
    """Whether `mark_rectified` was said of a quantizer."""
    return "rectified" in node.attributes


def mark_joined(node: ir.Node) -> None:
    """Note that a quantizer reads a concatenation of levels of its own grid."""
    node.attributes["joined"] = ir.AttrInt64("joined", 1)


def is_joined(node: ir.Node) -> bool:
    """Whether `mark_joined` was said of a quantizer."""
    return "joined" in node.attributes


def signal_names(model: ir.Model) -> set[str]:
    """Names of the `FakeQuantize` markers that stand in front of no layer."""
    names: dict[str, set[str]] = {FAKE_QUANTIZE: set(), DEQUANTIZE_WEIGHT: set()}
    for node in model.graph:
        if node.domain == DOMAIN:
            names[node.op_type].add(layer_of(node))
    return names[FAKE_QUANTIZE] - names[DEQUANTIZE_WEIGHT]


def stored_weight(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The initializer that a layer's operand is made of, and whether it is transposed on its way; None for activations.

    Looks through transposes and weight markers, or what became of these.
    """
    transposed = False
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", DEQUANTIZE_WEIGHT, "DequantizeLinear"):
            return None, False
        transposed ^= node.op_type == "Transpose"
        value = node.inputs[0]
    return value, transposed


def _name_dimensions(model: ir.Model, scale: int, batch: str | int) -> None:
    """Give the dynamic axes the names people look for: n, h, w in; n, scale*h, scale*w out.

    Shapes in between are forgotten: passes that pad would have to keep them right, and every runtime infers its own.
    """
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    model.graph.inputs[0].shape = ir.Shape([batch, 3, "h", "w"])
    model.graph.outputs[0].shape = ir.Shape([batch, 3, f"{scale}*h", f"{scale}*w"])


def _name_layers(model: ir.Model) -> None:
    """Call each convolution and matrix product by its layer's name, so that every tool's report names layers.

    A layer that runs several times is several nodes; all but the first get a number, because names are unique.
    """
    runs: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            name = next(filter(None, map(_owner, node.inputs[:2])), None)
            if name is not None:
                node.name = run_name(name, runs[name])
                runs[name] += 1


def _owner(value: ir.Value | None) -> str:
    """The layer whose weight an operand is: a layer under several names has its weight's under another than its own."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == DEQUANTIZE_WEIGHT:
            return layer_of(node)
        if node.op_type != "Transpose":
            return ""
        value = node.inputs[0]
    return "" if value is None else (value.name or "").rpartition(".")[0]


def _forget_origin(model: ir.Model) -> None:
    """Drop the exporter's notes: stack traces with somebody's paths, which would also make equal exports differ."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
