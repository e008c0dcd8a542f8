"""Graphs that may take any memory or time are told from those that cannot."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.growth import may_grow, refuse_growth
from tests.factories import lowered, tiny_model


@pytest.fixture
def model() -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(lowered(tiny_model()))
    return copy


def behind(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """`nodes` between what computes the output, now called `before`, and the output."""
    last = next(node for node in model.graph.node if "output" in node.output)
    last.output[0] = "before"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def loop() -> onnx.NodeProto:
    info = helper.make_tensor_value_info
    ins = [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("x", TensorProto.FLOAT, None)]
    outs = [info("c2", TensorProto.BOOL, []), info("x2", TensorProto.FLOAT, None)]
    steps = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Cos", ["x"], ["x2"])]
    return helper.make_node(
        "Loop", ["trips", "go", "before"], ["output"], body=helper.make_graph(steps, "b", ins, outs)
    )


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_this_program_writes_cannot(target):
    assert not may_grow(lowered(tiny_model(), target=target))


def test_a_loop_may(model):
    assert may_grow(behind(model, loop(), trips=np.array(2**62), go=np.array(True)))


def test_a_constant_of_forty_gigabytes_may(model):
    large = helper.make_node("ConstantOfShape", ["size"], ["large"])
    total = helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0)
    add = helper.make_node("Add", ["before", "sum"], ["output"])
    assert may_grow(behind(model, large, total, add, size=np.array([10**10])))


def test_what_doubles_over_and_over_may(model):
    names = ["before", *(f"d{step}" for step in range(30)), "output"]
    doubled = [helper.make_node("Concat", [a, a], [b], axis=2) for a, b in pairwise(names)]
    assert may_grow(behind(model, *doubled))


def test_a_border_of_millions_of_pixels_may(model):
    pads = np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20])
    assert may_grow(behind(model, helper.make_node("Pad", ["before", "pads"], ["output"]), pads=pads))


def test_a_size_that_another_operand_decides_may(model):
    shape = helper.make_node("Cast", ["before"], ["wide"], to=TensorProto.INT64)
    flat = helper.make_node("Reshape", ["wide", "all"], ["shape"])
    assert may_grow(
        behind(model, shape, flat, helper.make_node("ConstantOfShape", ["shape"], ["output"]), all=np.array([-1]))
    )


def test_operators_that_onnx_does_not_define_may(model):
    assert may_grow(behind(model, helper.make_node("Private", ["before"], ["output"], domain="my.own")))


SIDE = 2**16
SIZE = np.array([SIDE, SIDE])
ONE = np.zeros((1, 1), np.float32)
HUGE = {
    "ConstantOfShape": (["size"], {}, {"size": SIZE}),
    "Expand": (["one", "size"], {}, {"one": ONE, "size": SIZE}),
    "Tile": (["one", "size"], {}, {"one": ONE, "size": SIZE}),
    "Range": (["zero", "last", "step"], {}, {"zero": np.array(0), "last": np.array(SIDE**2), "step": np.array(1)}),
    "RandomNormal": ([], {"shape": [SIDE, SIDE]}, {}),
    "Pad": (["one", "pads"], {}, {"one": ONE, "pads": np.array([0, 0, SIDE, SIDE])}),
    "Resize": (["before", "", "", "size"], {}, {"size": np.array([1, 3, SIDE, SIDE])}),
    "Add": (["column", "row"], {}, {"column": np.zeros((SIDE, 1), np.float32), "row": np.zeros((1, SIDE), np.float32)}),
}


@pytest.mark.parametrize("op", HUGE)
def test_what_makes_gigabytes_of_a_few_numbers_is_refused_by_its_operator(op, model):
    inputs, attributes, constants = HUGE[op]
    nodes = [helper.make_node(op, inputs, ["large"], **attributes), helper.make_node("Size", ["large"], ["count"])]
    with pytest.raises(InputError, match=rf"the file asks for more memory .* its {op} 'large' makes [0-9x]+ values"):
        refuse_growth(behind(model, *nodes, **constants), "the file")


def test_sizes_that_are_computed_and_those_in_branches_count(model):
    sides = helper.make_node("Mul", ["shape", "factors"], ["size"])
    nodes = [helper.make_node("Shape", ["input"], ["shape"]), sides]
    many = behind(
        model, *nodes, helper.make_node("ConstantOfShape", ["size"], ["large"]), factors=np.array([1, 1, 2**12, 2**12])
    )
    with pytest.raises(InputError, match="its ConstantOfShape 'large' makes 1x3x131072x131072 values"):
        refuse_growth(many, "the file")
    bodies = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("ConstantOfShape", [size], [f"{name}.large"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.large", TensorProto.FLOAT, None)],
        )
        for name, size in (("then", "small"), ("else", "wide"))
    }
    branch = helper.make_node("If", ["go"], ["output"], **bodies)
    constants = {"go": np.array(True), "small": np.array([2]), "wide": SIZE}
    other = onnx.ModelProto()
    other.CopyFrom(lowered(tiny_model()))
    with pytest.raises(InputError, match=r"its ConstantOfShape 'else\.large' makes 65536x65536 values, 16 GiB"):
        refuse_growth(behind(other, branch, **constants), "the file")


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_this_program_writes_is_not_refused(target):
    refuse_growth(lowered(tiny_model(), target=target), "the graph")
