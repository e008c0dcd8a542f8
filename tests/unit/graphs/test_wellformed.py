"""Names that are no text and attributes of another type are refused where a file comes in."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.files import parse_onnx
from tests.factories import lowered, tiny_model


@pytest.fixture
def model() -> onnx.ModelProto:
    return lowered(tiny_model())


def test_what_this_program_writes_is_well_formed(model):
    parse_onnx(model.SerializeToString())


@pytest.mark.parametrize("name", [b"Conv", b"head.0.bias", b"producer_name"])
def test_text_that_is_none_is_refused(model, name):
    if name == b"producer_name":
        model.producer_name = "producer_name"
    data = model.SerializeToString()
    assert name in data
    with pytest.raises(InputError, match=r"damaged.*no text"):
        parse_onnx(data.replace(name, b"\xff" + name[1:]))


@pytest.mark.parametrize(
    ("attribute", "value"), [("pads", 1), ("strides", "two"), ("group", [1, 1]), ("dilations", 0.5)]
)
def test_an_attribute_of_another_type_is_refused(model, attribute, value):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    kept = [each for each in node.attribute if each.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(attribute, value)])
    with pytest.raises(InputError, match=f"damaged.*{attribute}.*another type"):
        parse_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "why"),
    [
        ("Conv", 1, 1, "has 1 inputs, and takes 2 to 3"),
        ("Add", 3, 1, "has 3 inputs, and takes 2 to 2"),
        ("QuantizeLinear", 0, 1, "has 0 inputs"),
        ("Relu", 1, 2, "has 2 outputs, and takes 1 to 1"),
        ("Conv", -1, 1, "lacks its input W"),
    ],
)
def test_inputs_and_outputs_that_an_operator_has_not_are_refused(model, op, inputs, outputs, why):
    node = next(node for node in model.graph.node if node.op_type == op)
    if inputs < 0:
        node.input[1] = ""
    else:
        node.input[:] = (list(node.input) * 3)[:inputs]
    node.output[:] = [*node.output, "more"][:outputs]
    with pytest.raises(InputError, match=why):
        parse_onnx(model.SerializeToString())


@pytest.mark.parametrize("version", [-1, 0, 2**31, 2**62])
def test_a_version_that_no_operators_have_is_refused(model, version):
    model.opset_import[0].version = version
    with pytest.raises(InputError, match=f"damaged.*version {version} of the operators"):
        parse_onnx(model.SerializeToString())


def test_of_a_version_to_come_operators_have_the_inputs_they_have_today(model):
    model.opset_import[0].version = 99
    parse_onnx(model.SerializeToString())
    next(node for node in model.graph.node if node.op_type == "Conv").input[:] = ["input"]
    with pytest.raises(InputError, match="has 1 inputs, and takes 2 to 3"):
        parse_onnx(model.SerializeToString())


def test_inputs_that_may_be_left_out_are_left_out(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.input[2:] = []
    parse_onnx(model.SerializeToString())
    node.input.append("")
    parse_onnx(model.SerializeToString())


def test_operators_and_attributes_that_onnx_does_not_know_are_left_alone(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.attribute.append(helper.make_attribute("vendor", 1))
    model.graph.node.append(helper.make_node("Private", ["input"], ["p"], domain="my.own", pads="x"))
    parse_onnx(model.SerializeToString())


@pytest.mark.parametrize("kind", [29, 1000])
def test_a_type_of_numbers_that_nobody_knows_is_refused(model, kind):
    model.graph.output[0].type.tensor_type.elem_type = kind
    with pytest.raises(InputError, match=rf"the type of 'output' is {kind}, which ONNX has not"):
        parse_onnx(model.SerializeToString())
