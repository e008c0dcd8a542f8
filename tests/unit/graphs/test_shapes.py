"""Shapes behind sizes that a graph computes itself: rounded up, divided, enumerated."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from odm_deploy.accounting import count_macs
from odm_deploy.building.coverage import coverage
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.graphs.shapes import infer_shapes
from odm_deploy.quantization.policy import quantizable_layers
from tests.factories import lowered, quantized, tiny_network


@pytest.fixture(scope="module")
def network():
    return tiny_network("swinir")


@pytest.fixture(scope="module")
def proto(network):
    return lowered(quantized(network, lambda *_: (8, "asymmetric", "per_channel")))


def test_every_float_tensor_of_a_network_of_windows_has_a_shape(proto):
    shapes = infer_shapes(proto, parse_shapes("1x3x10x14"))
    assert shapes["output"] == (1, 3, 20, 28)
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "Conv", "Softmax", "LayerNormalization", "Reshape", "Concat"):
            assert node.output[0] in shapes, node.name


def test_macs_are_those_counted_from_the_network(network, proto):
    # A multiple of the window: then the padded image is the image.
    found = {layer.name: layer.macs for layer in coverage(proto, [], parse_shapes("1x3x12x16")).layers}
    counted = count_macs(network, (24, 32))
    assert {name: found[name] for name in quantizable_layers(network)} == {
        name: counted[name] for name in quantizable_layers(network)
    }


def test_sizes_that_follow_from_sizes_are_known_through_dozens_of_blocks():
    # Maxima are what ONNX itself does not follow, as in shifted windows.
    nodes, name = [], "x"
    for index in range(60):
        nodes += [
            helper.make_node("Shape", [name], [f"shape{index}"]),
            helper.make_node("Max", [f"shape{index}", f"shape{index}"], [f"sizes{index}"]),
            helper.make_node("Reshape", [name, f"sizes{index}"], [name := f"block{index}"]),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "blocks", [x], [y]))
    assert infer_shapes(model, parse_shapes("1x3x10x14"))[name] == (1, 3, 10, 14)


def test_the_graph_is_left_as_it_is(proto):
    before = proto.SerializeToString(deterministic=True)
    infer_shapes(proto, parse_shapes("1x3x10x14"))
    assert proto.SerializeToString(deterministic=True) == before
