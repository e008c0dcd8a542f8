"""Attention as OpenVINO computes it by one operator: nothing but transpositions and sums around both products.

Networks compute queries, keys and values by one linear layer and take them apart afterwards, through a transposition
of the whole (`separate_parts`):

    MatMul -> Add -> Reshape(.., 3, heads, d) -> Transpose -> Gather(i) -> [Mul(number)] -> [Transpose] -> ..

becomes, for each i, with the columns of the weight and of what is added that Gather takes,

    MatMul -> Add -> [Mul(number)] -> Reshape(.., heads, d) -> Transpose -> ..

Columns of a product do not depend on each other, and transpositions only move, so that no value changes. Each part is
moved once and by whole rows of a head, most of them by OpenVINO 2026.4's operator for attention itself.

Between both products, the mask of shifted windows is added image by image (`mask_at_once`). In a graph for one image

    Reshape(1, windows, heads, T, T) -> Add(mask) -> Reshape(windows, heads, T, T)     is     Add(mask)

SwinIR-light at 320x180 is a tenth faster by both (`docs/measurements/cpu-speed.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import GraphEditor, constant_array, only_consumer, replace_node
from odm_deploy.graphs.shapes import infer_types
from odm_deploy.lowering.metadata import layer_of_run

_TURN = (1, 0)


@dataclass(frozen=True)
class _Parts:
    """What computes several tensors side by side, and what takes them apart."""

    product: ir.Node
    weight: ir.Node
    """DequantizeLinear of codes, [columns, inputs]."""
    terms: tuple[ir.Node, ...]
    """Additions of a vector each, in order."""
    shape: tuple[int, ...]
    """That all columns are brought to."""
    axis: int
    """Of `shape`, which tells the parts apart."""
    order: tuple[int, ...]
    """Of the axes of one part."""
    takers: tuple[ir.Node, ...]
    unread: tuple[ir.Node, ...]
    """What nobody reads once all of `takers` have their own, those first that read others."""

    @property
    def columns(self) -> int:
        """Of one part."""
        return prod(self.shape[self.axis + 1 :])


def separate_parts(editor: GraphEditor, transpose: ir.Node) -> None:
    """Give each of those who take one part of what `transpose` moves a product of its own; others are left alone."""
    parts = _parts_of(transpose)
    if parts is None:
        return
    shape = (*parts.shape[: parts.axis], *parts.shape[parts.axis + 1 :])
    for taker in parts.takers:
        _separate(editor, parts, taker, shape)
    for node in parts.unread:
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def mask_at_once(model: ir.Model, editor: GraphEditor) -> None:
    """Spare sums of what is computed for one image the reshapes around them, wherever these add an axis of one."""
    found = [(node, sums) for node in model.graph if (sums := _sum_of_one_image(node)) is not None]
    types = infer_types(ir.to_proto(model)) if found else {}

    def sizes_of(value: ir.Value) -> list[int]:
        kind = types.get(value.name or "")
        return [] if kind is None else [size.dim_value for size in kind.shape.dim]

    for back, (total, there, unsqueeze) in found:
        (x, target), (term, added) = there.inputs[:2], unsqueeze.inputs
        sizes, axes = _integers(target)[1:], _integers(added)
        if x is None or term is None or sizes_of(x)[1:] != sizes[1:]:
            continue
        if len(sizes_of(term)) + len(axes) != len(sizes) + 1:
            continue
        name = back.outputs[0].name or ""
        if kept := [axis - 1 for axis in axes if axis]:
            added = editor.constant(f"{name}.axes", kept, np.int64)
            term = editor.node_before(back, "Unsqueeze", [term, added], f"{name}.term")
        new = editor.node_before(back, "Add", [x, term], f"{name}.sum")
        replace_node(back, new)
        new.name = name
        for node in (total, there, unsqueeze):
            if not node.outputs[0].uses():
                model.graph.remove(node, safe=True)


def _sum_of_one_image(back: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """Of a Reshape to [-1, ..] behind a sum: that, the Reshape to [1, -1, ..] of one of its terms, and what gives the
    other its axes of one; None of any other operator.
    """
    total = _sole_producer(back.inputs[0], "Add") if back.op_type == "Reshape" else None
    if total is None:
        return None
    reshapes = [_sole_producer(value, "Reshape") for value in total.inputs]
    there = next((node for node in reshapes if node is not None), None)
    term = next((value for value in total.inputs if there is None or value is not there.outputs[0]), None)
    unsqueeze = term.producer() if term is not None else None
    if there is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
        return None
    sizes = _integers(back.inputs[1])
    one_image = sizes[:1] == [-1] and min(sizes[1:], default=0) > 0 and _integers(there.inputs[1]) == [1, *sizes]
    return (total, there, unsqueeze) if one_image and min(_integers(unsqueeze.inputs[1]), default=-1) == 0 else None


def _integers(value: ir.Value | None) -> list[int]:
    """The numbers of a constant; none of anything computed."""
    array = constant_array(value)
    return [] if array is None else [int(each) for each in array.reshape(-1)]


def _parts_of(transpose: ir.Node) -> _Parts | None:
    """What `separate_parts` can take apart; None for any other transposition."""
    order = tuple(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else ()
    takers = tuple(dict.fromkeys(use.node for use in transpose.outputs[0].uses()))
    if len(order) < 3 or not takers or transpose.outputs[0].is_graph_output() or not all(map(_takes_one, takers)):
        return None
    reshape = _sole_producer(transpose.inputs[0], "Reshape")
    sizes = constant_array(reshape.inputs[1]) if reshape is not None else None
    if reshape is None or sizes is None or len(sizes) != len(order):
        return None
    terms = list[ir.Node]()
    node = _sole_producer(reshape.inputs[0], "Add")
    while node is not None:
        terms.insert(0, node)
        node = _sole_producer(_computed(node), "Add")
    product = _sole_producer(_computed(terms[0]) if terms else reshape.inputs[0], "MatMul")
    turn = _sole_producer(product.inputs[1], "Transpose") if product is not None else None
    weight = _sole_producer(turn.inputs[0], "DequantizeLinear") if turn is not None else None
    codes = constant_array(weight.inputs[0]) if weight is not None else None
    if product is None or turn is None or weight is None or codes is None or codes.ndim != 2:
        return None
    if tuple(turn.attributes["perm"].as_ints()) != _TURN or any(_constant(each, 1) is None for each in terms):
        return None
    axis, shape = order[0], tuple(int(size) for size in sizes)
    # The axes from that of the parts on are columns, all of them and no others.
    if axis == 0 or min(shape[axis:]) < 1 or prod(shape[axis:]) != len(codes) or min(shape) < -1 or 0 in shape:
        return None
    rest = tuple(each - (each > axis) for each in order[1:])
    unread = (transpose, reshape, *reversed(terms), product, turn, weight)
    return _Parts(product, weight, tuple(terms), shape, axis, rest, takers, unread)


def _separate(editor: GraphEditor, parts: _Parts, taker: ir.Node, shape: tuple[int, ...]) -> None:
    """Compute what `taker` takes, and put it in its place."""
    index = int(np.asarray(constant_array(taker.inputs[1]))) % parts.shape[parts.axis]
    columns = slice(index * parts.columns, (index + 1) * parts.columns)
    layer = layer_of_run(parts.product.name or "")
    operands = [
        _cut(editor, f"{layer}.{role}_part{index}", value, columns)
        for role, value in zip(("codes", "scale_w", "zero_point_w"), parts.weight.inputs, strict=True)
    ]
    axis = {"axis": 0} if "axis" in parts.weight.attributes else None
    weight = editor.node_before(taker, "DequantizeLinear", operands, f"{layer}.weight_part{index}", axis)
    turned = editor.node_before(taker, "Transpose", [weight], f"{layer}.weight_turned{index}", {"perm": _TURN})
    x = editor.node_before(taker, "MatMul", [parts.product.inputs[0], turned], f"{layer}.product{index}")
    product = x.producer()
    assert product is not None
    product.name = f"{layer}:part{index}"
    for term in parts.terms:
        vector = _constant(term, 1)
        assert vector is not None
        role = (vector.name or "").rpartition(".")[2]
        cut = _cut(editor, f"{layer}.{role}_part{index}", vector, columns)
        x = editor.node_before(taker, "Add", [x, cut], f"{layer}.sum{index}")
    order, name = parts.order, taker.outputs[0].name
    factor = only_consumer(taker.outputs[0])
    if factor is not None and factor.op_type == "Mul" and (number := _constant(factor, 0)) is not None:
        x = editor.node_before(taker, "Mul", [x, number], f"{layer}.scaled{index}")
        name = factor.outputs[0].name
        replace_node(factor, taker.outputs[0])
    turn = only_consumer(taker.outputs[0])
    if turn is not None and turn.op_type == "Transpose" and "perm" in turn.attributes:
        order = tuple(order[each] for each in turn.attributes["perm"].as_ints())
        name = turn.outputs[0].name
        replace_node(turn, taker.outputs[0])
    sizes = editor.constant(f"{layer}.shape_part{index}", shape, np.int64)
    x = editor.node_before(taker, "Reshape", [x, sizes], f"{layer}.heads{index}")
    x = editor.node_before(taker, "Transpose", [x], f"{layer}.moved{index}", {"perm": order})
    replace_node(taker, x)
    # What is quantized behind it is noted by name.
    x.name = name


def _cut(editor: GraphEditor, name: str, value: ir.Value | None, columns: slice) -> ir.Value:
    """The part of a constant that belongs to `columns`; itself where one number belongs to all."""
    array = constant_array(value)
    assert value is not None and array is not None
    return value if array.ndim == 0 or len(array) == 1 else editor.constant(name, array[columns], array.dtype)


def _takes_one(node: ir.Node) -> bool:
    """Whether a node takes one index of the first axis."""
    if node.op_type != "Gather" or node.outputs[0].is_graph_output():
        return False
    index = constant_array(node.inputs[1])
    return (
        index is not None
        and index.ndim == 0
        and ("axis" not in node.attributes or not node.attributes["axis"].as_int())
    )


def _sole_producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node of kind `op` that computes `value` for one reader; None for any other."""
    node = value.producer() if value is not None else None
    alone = value is not None and only_consumer(value) is not None and not value.is_graph_output()
    return node if node is not None and alone and node.op_type == op else None


def _computed(addition: ir.Node) -> ir.Value | None:
    """The operand of an addition that is no constant; None where none or both are."""
    values = [value for value in addition.inputs if constant_array(value) is None]
    return values[0] if len(values) == 1 else None


def _constant(node: ir.Node, axes: int) -> ir.Value | None:
    """The operand of `node` that is a constant of so many axes; None where none is."""
    return next((each for each in node.inputs if (a := constant_array(each)) is not None and a.ndim == axes), None)
