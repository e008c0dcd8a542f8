"""Two graphs side by side: names and the order of nodes do not matter, all else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.graphs.differences import differences, is_rounding

SCALE = np.array([0.5, 0.25], np.float32)


def graph(prefix: str = "", **constants: np.ndarray) -> onnx.ModelProto:
    """x -> Conv -> Relu -> Mul(scale) -> Add(x) -> y, with names of its own."""
    values = {
        "weight": np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1),
        "scale": SCALE.reshape(1, 2, 1, 1),
        **constants,
    }
    steps = [("Conv", "x", "weight", "a"), ("Relu", "a", None, "b"), ("Mul", "b", "scale", "c"), ("Add", "c", "x", "y")]
    nodes = [
        helper.make_node(op, [name if name == "x" else prefix + name for name in (one, two) if name], [prefix + out])
        for op, one, two, out in steps
    ]
    edges = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, None, None]) for name in ("x", prefix + "y")
    ]
    stored = [numpy_helper.from_array(value, prefix + name) for name, value in values.items()]
    made = helper.make_graph(nodes, "g", edges[:1], edges[1:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == op)


def test_a_graph_is_itself_under_other_names():
    found = differences(graph("other."), graph())
    assert not found
    assert len(found.pairs) == 2


def test_constant_nodes_are_constants():
    model = graph()
    (scale,) = [each for each in model.graph.initializer if each.name == "scale"]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["scale"], value=scale))
    model.graph.initializer.remove(scale)
    assert not differences(model, graph())


@settings(deadline=None, max_examples=50)
@given(place=st.integers(0, 3), bit=st.integers(0, 31), name=st.sampled_from(["weight", "scale"]))
def test_every_bit_of_every_constant_counts(place, bit, name):
    model = graph()
    tensor = next(each for each in model.graph.initializer if each.name == name)
    value = numpy_helper.to_array(tensor).copy()
    place %= value.size
    value.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    found = differences(model, graph())
    assert not found.wiring
    (clause,) = found.constants
    assert clause.startswith(f"{name}[")
    assert f"(1 of {value.size} values differ)" in clause


def test_both_values_are_named():
    other = np.nextafter(SCALE, np.float32(1)).reshape(1, 2, 1, 1)
    (clause,) = differences(graph(scale=other), graph()).constants
    assert clause == "scale[0, 0, 0, 0] is 0.50000006 instead of 0.5 (2 of 2 values differ)"


@pytest.mark.parametrize("value", [SCALE.astype(np.float64).reshape(1, 2, 1, 1), SCALE.reshape(2, 1, 1)])
def test_type_and_shape_of_a_constant_count(value):
    (clause,) = differences(graph(scale=value), graph()).constants
    assert "instead of float32 [1, 2, 1, 1]" in clause


def test_rounding_is_allowed_where_it_is_said_to_be():
    near = (SCALE * np.float32(1 + 5e-7)).reshape(1, 2, 1, 1)
    assert differences(graph(scale=near), graph()).constants
    assert not differences(graph(scale=near), graph(), lambda name, a, b: name == "scale" and is_rounding(a, b))
    far = (SCALE * np.float32(1 + 1e-5)).reshape(1, 2, 1, 1)
    assert differences(graph(scale=far), graph(), lambda name, a, b: name == "scale" and is_rounding(a, b)).constants


def test_a_kernel_shape_may_be_left_out():
    model = graph()
    node(model, "Conv").attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    assert not differences(model, graph())
    other = graph()
    node(other, "Conv").attribute.append(helper.make_attribute("kernel_shape", [3, 3]))
    assert differences(model, other).wiring


def _without_relu(model):
    node(model, "Mul").input[0] = "a"


def _another_operator(model):
    node(model, "Relu").op_type = "Sigmoid"


def _an_attribute(model):
    node(model, "Conv").attribute.append(helper.make_attribute("pads", [1, 1, 0, 0]))


def _another_skip(model):
    node(model, "Add").input[1] = "a"


def _an_input_instead_of_a_constant(model):
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1, 2, 1, 1]))


def _computed_twice(model):
    second = helper.make_node("Conv", ["x", "weight"], ["a2"])
    model.graph.node.insert(0, second)
    node(model, "Add").input[1] = "a2"


def _a_function(model):
    body = helper.make_node("Neg", ["x"], ["y"])
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [body], [helper.make_opsetid("", 20)]))


def _operators_of_another_version(model):
    model.opset_import[0].version = 21


def _a_fixed_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 7


def _another_output(model):
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))


def _a_constant_twice(model):
    model.graph.initializer.append(model.graph.initializer[0])


def _a_constant_that_is_computed_too(model):
    model.graph.node.append(helper.make_node("Neg", ["scale"], ["scale"]))


def _nothing_computes_it(model):
    model.graph.node.remove(node(model, "Relu"))


@pytest.mark.parametrize(
    "change",
    [
        _without_relu,
        _another_operator,
        _an_attribute,
        _another_skip,
        _an_input_instead_of_a_constant,
        _computed_twice,
        _a_function,
        _operators_of_another_version,
        _a_fixed_size,
        _another_output,
        _nothing_computes_it,
        _a_constant_twice,
        _a_constant_that_is_computed_too,
    ],
)
def test_other_wiring_is_named(change):
    model = graph()
    change(model)
    found = differences(model, graph())
    assert found.wiring, change
    assert all(" instead of " in clause and len(clause) < 200 for clause in found.wiring)
