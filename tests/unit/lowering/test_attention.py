"""Queries, keys and values get products of their own, and masks are added without reshapes: the same numbers.

Or everything stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.graphs.editor import GraphEditor
from odm_deploy.lowering.dialects.attention import mask_at_once, separate_parts
from odm_deploy.lowering.metadata import layer_of_run

TOKENS, INPUTS = 6, 4


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    stored: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@dataclass(frozen=True)
class Parts:
    """A linear layer whose columns are taken apart."""

    shape: tuple[int, ...] = (-1, TOKENS, 3, 2, 5)
    order: tuple[int, ...] = (2, 0, 3, 1, 4)
    indices: tuple[int, ...] = (0, 1, 2)
    axis: int = 0
    terms: int = 2
    per_channel: bool = True
    factor: float | None = None
    turned: tuple[int, ...] | None = None
    also_output: str = ""
    second_reader: str = ""

    def graph(self) -> onnx.ModelProto:
        """Whole numbers and halves only, so that sums are exact in any order."""
        rng = np.random.default_rng(0)
        columns = 30
        scales = rng.choice([0.5, 1.0, 2.0], columns if self.per_channel else ()).astype(np.float32)
        stored = {
            "qkv.codes": rng.integers(-8, 8, (columns, INPUTS)).astype(np.int8),
            "qkv.scale_w": np.asarray(scales),
            "qkv.zero_point_w": np.zeros(scales.shape, np.int8),
            "shape": np.array(self.shape, np.int64),
        }
        axis = {"axis": 0} if self.per_channel else {}
        nodes = [
            helper.make_node("DequantizeLinear", list(stored)[:3], ["qkv.weight"], **axis),
            helper.make_node("Transpose", ["qkv.weight"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["sum0"], name="qkv"),
        ]
        for index in range(self.terms):
            stored[f"qkv.bias{index}"] = rng.integers(-8, 8, columns).astype(np.float32)
            nodes.append(helper.make_node("Add", [f"sum{index}", f"qkv.bias{index}"], [f"sum{index + 1}"]))
        nodes += [
            helper.make_node("Reshape", [f"sum{self.terms}", "shape"], ["parts"]),
            helper.make_node("Transpose", ["parts"], ["moved"], perm=self.order),
        ]
        outputs = [*filter(None, [self.also_output])]
        for position, index in enumerate(self.indices):
            stored[f"index{position}"] = np.array(index, np.int64)
            nodes.append(
                helper.make_node("Gather", ["moved", f"index{position}"], [f"taken{position}"], axis=self.axis)
            )
            last = f"taken{position}"
            if self.factor is not None and position == 0:
                stored["factor"] = np.array(self.factor, np.float32)
                nodes.append(helper.make_node("Mul", [last, "factor"], ["scaled"]))
                last = "scaled"
            if self.turned is not None and position < 2:
                nodes.append(helper.make_node("Transpose", [last], [f"turned{position}"], perm=self.turned))
                last = f"turned{position}"
            nodes.append(helper.make_node("Neg", [last], [f"y{position}"]))
            outputs.append(f"y{position}")
        if self.second_reader:
            nodes.append(helper.make_node("Abs", [self.second_reader], ["other"]))
            outputs.append("other")
        return model_of(nodes, {"x": ["n", TOKENS, INPUTS]}, outputs, stored)


def separated(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    editor = GraphEditor(model.graph)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            separate_parts(editor, node)
    editor.drop_unused_constants()
    return ir.to_proto(model)


def computed(proto: onnx.ModelProto) -> Sequence[np.ndarray]:
    x = np.random.default_rng(1).integers(-8, 8, (3, TOKENS, INPUTS)).astype(np.float32)
    return ReferenceEvaluator(proto).run(None, {"x": x})


QKV = Parts()


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(QKV, id="qkv"),
        pytest.param(replace(QKV, factor=0.25, turned=(0, 1, 3, 2)), id="scaled_query_turned_key"),
        pytest.param(replace(QKV, turned=(0, 3, 1, 2)), id="turned_otherwise"),
        pytest.param(replace(QKV, indices=(-1, 0)), id="counted_from_the_end"),
        pytest.param(replace(QKV, indices=(1, 1, 2)), id="one_taken_twice"),
        pytest.param(replace(QKV, per_channel=False, terms=1), id="one_scale"),
        pytest.param(replace(QKV, terms=0), id="no_bias"),
        pytest.param(Parts((-1, TOKENS, 3, 10), (2, 0, 1, 3)), id="heads_told_apart_later"),
        pytest.param(Parts((-1, TOKENS, 2, 3, 5), (2, 4, 1, 0, 3), (1, 0)), id="two_parts_moved_otherwise"),
        pytest.param(Parts((-1, 3, 2, 5), (1, 0, 2, 3), (0, 2)), id="images_and_tokens_in_one_axis"),
        pytest.param(Parts((-1, 2, 3, 3, 10), (3, 0, 1, 2, 4), (2, 0)), id="tokens_in_rows"),
    ],
)
def test_parts_have_products_of_their_own_and_the_same_numbers(parts):
    before = parts.graph()
    after = separated(before)
    for found, expected in zip(computed(after), computed(before), strict=True):
        np.testing.assert_array_equal(found, expected)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert not kinds["Gather"]
    assert kinds["MatMul"] == len(parts.indices)
    # One for the weight of each part, one for the part itself.
    assert kinds["Transpose"] == 2 * len(parts.indices)
    names = [node.name for node in after.graph.node if node.op_type == "MatMul"]
    assert {layer_of_run(name) for name in names} == {"qkv"}
    # Quantizers behind them are noted by the name of what they read.
    reads = {node.output[0]: node.input[0] for node in before.graph.node if node.op_type == "Neg"}
    assert reads == {node.output[0]: node.input[0] for node in after.graph.node if node.op_type == "Neg"}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(replace(QKV, second_reader="moved"), id="all_parts_are_read_together"),
        pytest.param(replace(QKV, second_reader="sum2"), id="the_columns_are_read_together"),
        pytest.param(replace(QKV, second_reader="qkv.weight"), id="weight_read_elsewhere"),
        pytest.param(replace(QKV, also_output="moved"), id="what_is_moved_is_an_output"),
        pytest.param(replace(QKV, also_output="parts"), id="what_is_reshaped_is_an_output"),
        pytest.param(replace(QKV, axis=1), id="other_axis"),
        pytest.param(Parts((-1, 9, 2, 5), (1, 0, 2, 3), (0, 8)), id="parts_of_several_tokens"),
        pytest.param(Parts((3, -1, TOKENS, 10), (0, 2, 1, 3)), id="parts_are_images"),
        pytest.param(Parts((-1, TOKENS, 3, 2, 5), (3, 0, 1, 2, 4), (0, 1)), id="parts_are_heads"),
    ],
)
def test_anything_else_stays(parts):
    before = parts.graph()
    after = separated(before)
    assert Counter(node.op_type for node in after.graph.node) == Counter(node.op_type for node in before.graph.node)
    for found, expected in zip(computed(after), computed(before), strict=True):
        np.testing.assert_array_equal(found, expected)


WINDOWS, HEADS = 4, 2
LOGITS = (HEADS, TOKENS, TOKENS)


def masked(
    *,
    there: Sequence[int] = (1, -1, *LOGITS),
    back: Sequence[int] = (-1, *LOGITS),
    mask: Sequence[int | str] = ("windows", TOKENS, TOKENS),
    axes: Sequence[int] = (0, 2),
    swapped: bool = False,
    sums: int = 1,
    read_between: str = "",
) -> onnx.ModelProto:
    stored = {"there": np.array(there), "back": np.array(back), "axes": np.array(axes)}
    nodes, outputs = [helper.make_node("Unsqueeze", ["mask", "axes"], ["term"])], ["y"]
    last = "x"
    for index in range(sums):
        terms = [f"spread{index}", "term"]
        nodes += [
            helper.make_node("Neg", [last], [f"logits{index}"]),
            helper.make_node("Reshape", [f"logits{index}", "there"], [f"spread{index}"]),
            helper.make_node("Add", terms[::-1] if swapped else terms, [f"sum{index}"]),
            helper.make_node("Reshape", [f"sum{index}", "back"], [f"masked{index}"]),
        ]
        last = f"masked{index}"
    nodes.append(helper.make_node("Softmax", [last], ["y"]))
    if read_between:
        nodes.append(helper.make_node("Abs", [read_between], ["other"]))
        outputs.append("other")
    return model_of(nodes, {"x": ["windows", *LOGITS], "mask": mask}, outputs, stored)


def masked_at_once(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    editor = GraphEditor(model.graph)
    mask_at_once(model, editor)
    return ir.to_proto(model)


def check_same_logits(found: onnx.ModelProto, expected: onnx.ModelProto) -> None:
    rng = np.random.default_rng(2)
    shapes = {
        each.name: [size.dim_value or WINDOWS for size in each.type.tensor_type.shape.dim] for each in found.graph.input
    }
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    pairs = zip(*(ReferenceEvaluator(proto).run(None, inputs) for proto in (found, expected)), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="as_in_swinir"),
        pytest.param({"swapped": True}, id="the_other_way_round"),
        pytest.param({"sums": 3}, id="one_mask_for_several"),
        pytest.param({"mask": ("windows", *LOGITS), "axes": (0,)}, id="a_mask_for_each_head"),
        pytest.param({"mask": (TOKENS, TOKENS), "axes": (0, 1, 2)}, id="one_mask_for_all"),
    ],
)
def test_masks_are_added_without_reshapes(settings):
    before = masked(**settings)
    after = masked_at_once(before)
    assert "Reshape" not in {node.op_type for node in after.graph.node}
    check_same_logits(after, before)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"there": (2, -1, *LOGITS), "mask": (2, TOKENS, TOKENS)}, id="two_images"),
        pytest.param({"there": (1, -1, 1, *LOGITS[:2], 6), "axes": (0, 1, 3)}, id="another_axis"),
        pytest.param({"back": (-1, HEADS * TOKENS, TOKENS)}, id="back_to_another_shape"),
        pytest.param(
            {
                "there": (1, -1, 1, TOKENS, TOKENS),
                "back": (-1, 1, TOKENS, TOKENS),
                "mask": (TOKENS, TOKENS),
                "axes": (0, 1, 2),
            },
            id="heads_become_windows",
        ),
        pytest.param({"mask": (TOKENS,), "axes": (0, 1)}, id="a_term_of_fewer_axes"),
        pytest.param({"read_between": "spread0"}, id="reshaped_logits_are_read"),
        pytest.param({"read_between": "sum0"}, id="the_sum_is_read"),
    ],
)
def test_other_sums_keep_their_reshapes(settings):
    before = masked(**settings)
    after = masked_at_once(before)
    assert sum(node.op_type == "Reshape" for node in after.graph.node) == 2
    check_same_logits(after, before)
