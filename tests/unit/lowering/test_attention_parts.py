"""Queries, keys and values get products of their own, which compute the same numbers, or everything stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.graphs.editor import GraphEditor
from odm_deploy.lowering.dialects.attention import separate_parts
from odm_deploy.lowering.metadata import layer_of_run

TOKENS, INPUTS = 6, 4


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
        graph = helper.make_graph(
            nodes,
            "parts",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TOKENS, INPUTS])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in stored.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


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
