"""Golden outputs: every runtime reproduces them, and one wrong number anywhere in the graph is found and named."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from odm_deploy.bundle.golden import Golden, read_golden
from odm_deploy.proof.golden import check_golden, golden_of
from odm_deploy.quantization.exact.trace import integer_program
from tests.exact_models import calibrated_exact
from tests.factories import OPENERS, lowered

LAYERS = list(calibrated_exact("edsr").layers)


@functools.cache
def recorded(name="edsr", bits=4) -> Golden:
    model = calibrated_exact(name, bits)
    return golden_of(integer_program(model), lowered(model))[0]


def checked(proto, golden=None, opener="onnxruntime", *, layers=True):
    opens = OPENERS[opener]
    with opens(proto.SerializeToString()) as runtime:
        return check_golden(golden or recorded(), runtime, proto, opens if layers else None)


def edited(constant, change) -> onnx.ModelProto:
    """The exact EDSR's graph with one initializer changed."""
    proto = lowered(calibrated_exact("edsr"))
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == constant)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), constant))
    return proto


def one_code_off(codes):
    """The middle weight moved by one code."""
    flat = codes.reshape(-1)
    flat[flat.size // 2] += 1 if flat[flat.size // 2] <= 0 else -1
    return codes


@pytest.mark.parametrize(
    ("name", "bits"), [("edsr", 8), ("edsr", 4), ("edsr", 2), ("srresnet", 4), ("rdn", 8), ("again", 8)]
)
@pytest.mark.parametrize("opener", OPENERS)
def test_every_runtime_reproduces_every_layer(name, bits, opener):
    report = checked(lowered(calibrated_exact(name, bits)), recorded(name, bits), opener)
    assert report.failures == []
    assert report.to_dict() == {"images": 3, "identical": True, "first_layer": None}


@pytest.mark.parametrize(
    ("layer", "opener"), [*((layer, "onnxruntime") for layer in LAYERS), ("body.1.body.0", "openvino")]
)
def test_one_wrong_weight_code_is_found_in_its_layer(layer, opener):
    report = checked(edited(f"{layer}.codes", one_code_off), opener=opener)
    assert report.first_layer == layer
    # Once by what the runtime computes, once by what is in the file.
    assert f"the first layer that differs is {layer}" in report.failures
    assert f"model.onnx is not what was written: {layer}" in report.failures


def test_a_wrong_code_is_named_without_looking_into_the_runtime():
    report = checked(edited("body.0.body.2.codes", one_code_off), layers=False)
    assert report.first_layer == "body.0.body.2"
    assert report.to_dict()["identical"] is False


@pytest.mark.parametrize(
    ("constant", "change", "layer", "seen"),
    [
        # A quantizer's step belongs to the layer it feeds; what is seen to differ is what the layer before it computes.
        ("body.1.body.0.scale_x", lambda scale: scale * 2, "body.1.body.0", "body.0.body.2"),
        ("body.1.body.2.scale_w", lambda scale: scale * 2, "body.1.body.2", "body.1.body.2"),
        ("body.0.body.2.bias", lambda bias: bias + 1, "body.0.body.2", "body.0.body.2"),
        ("tail.1.center", lambda center: center + 4, "tail.1", "tail.0.0"),
        ("tail.1.bias_shifted", lambda bias: bias + 1, "tail.1", "tail.1"),
    ],
)
def test_other_wrong_constants_are_found(constant, change, layer, seen):
    report = checked(edited(constant, change))
    assert report.first_layer == layer
    assert f"the first layer that differs is {seen}" in report.failures


def test_a_wrong_mean_is_found_in_the_layer_next_to_it():
    assert checked(edited("reshape", lambda mean: mean + 1)).first_layer == "head.0"
    report = checked(edited("reshape_1", lambda mean: mean + 1))
    assert report.first_layer == "tail.1"
    assert [failure.partition(":")[0] for failure in report.failures] == [
        "3 of 3 golden images come out differently",
        "model.onnx is not what was written",
        "the first layer that differs is tail.1",
    ]


def test_a_code_no_image_shows_is_found_in_the_file():
    # A weight whose input channel is always zero changes nothing, until somebody's image says otherwise.
    proto = edited("tail.1.codes", lambda codes: codes)
    golden = recorded()
    report = checked(proto, Golden({**golden.graph, "tail.1": "another hash"}, golden.images))
    assert report.first_layer == "tail.1"
    assert report.failures == ["model.onnx is not what was written: tail.1"]


def test_a_wrong_attribute_is_found():
    proto = lowered(calibrated_exact("edsr"))
    node = next(node for node in proto.graph.node if node.op_type == "DepthToSpace")
    next(attribute for attribute in node.attribute if attribute.name == "mode").s = b"DCR"
    report = checked(proto)
    assert report.first_layer == "tail.0.0"
    assert "model.onnx is not what was written: tail.0.0" in report.failures


@pytest.mark.parametrize("change", [lambda graph: graph.input[0], lambda graph: graph.output[0]])
def test_other_edges_belong_to_no_layer(change):
    proto = lowered(calibrated_exact("edsr"))
    change(proto.graph).type.tensor_type.shape.dim[3].dim_value = 32
    report = checked(proto, layers=False)
    assert report.failures == ["model.onnx is not what was written: what belongs to no layer"]
    assert report.first_layer is None


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_graphs_with_uint8_images_have_the_same_golden_outputs(layout):
    model = calibrated_exact("edsr")
    proto = lowered(model, io="uint8", layout=layout)
    golden, _ = golden_of(integer_program(model), proto)
    assert [record.output for record in golden.images] == [record.output for record in recorded().images]
    assert checked(proto, golden).failures == []


def test_records_are_of_the_golden_images(tmp_path):
    recorded().write(tmp_path)
    # Records of other images are refused.
    assert read_golden(tmp_path) == recorded()
