"""Profile `engine`: between one int8 convolution and the next stands nothing but what TensorRT fuses."""

import functools

import numpy as np
import pytest
import torch

from odm_deploy.lowering.metadata import read_taps
from odm_deploy.networks.registry import build_network
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from tests.factories import OPENERS, lowered, random_images

QUICK = CalibrationSettings(equalize=False, adaptive_rounding=False, correct_bias=False)
NETWORKS = {
    "edsr": {"scale": 4, "blocks": 2, "features": 8},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "features": 8, "growth": 8},
    "srresnet": {"scale": 4, "blocks": 2, "features": 8},
}


@functools.cache
def model_of(name: str, profile: str = "engine", **others):
    torch.manual_seed(3)
    network = build_network(name, NETWORKS[name]).eval()
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(2)]
    return calibrate(network, images, QuantizationPolicy.parse(profile, "8", **others), QUICK)[0]


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return model_of(request.param)


def test_zero_is_in_the_middle_of_every_grid_but_the_images(model):
    assert [name for name, grid in model.grids.items() if not grid.is_symmetric] == [
        name for name, grid in model.grids.items() if grid == model.network.output_grid
    ]


def test_no_kernel_pads_shifts_or_bounds_in_front_of_a_convolution(model):
    graph = lowered(model).graph
    producers = {name: node for node in graph.node for name in node.output}
    assert "Pad" not in {node.op_type for node in graph.node}
    for conv in (node for node in graph.node if node.name in model.layers):
        node = producers[conv.input[0]]
        # Pixel shuffles move what is dequantized, and TensorRT moves the codes.
        node = producers[node.input[0]] if node.op_type == "DepthToSpace" else node
        quantizer = producers[node.input[0]]
        assert (node.op_type, quantizer.op_type) == ("DequantizeLinear", "QuantizeLinear")
        source = producers[quantizer.input[0]]
        # Behind a concatenation OpenVINO needs a bound (`quirks.openvino.comes_from_concat`).
        is_joined = source.op_type == "Min" and producers[source.input[0]].op_type == "Concat"
        assert is_joined or source.op_type in ("Conv", "Relu", "PRelu", "Add"), conv.name


@pytest.mark.parametrize("opener", ["onnx_reference", "openvino"])
@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_teacher_forced_every_layer_agrees_but_for_ties(model, opener, target):
    proto = lowered(model, target=target)
    layers = compare_layers(model, proto, OPENERS[opener], [random_images(12, 16, seed=6)])
    assert set(model.grids) <= {layer.name for layer in layers} | {tap.layer for tap in read_taps(proto)}
    assert {layer.name: layer.flips for layer in layers if not layer.is_clean} == {}


@pytest.mark.parametrize("opener", ["onnx_reference", "onnxruntime_unfused", "openvino"])
@pytest.mark.parametrize("name", NETWORKS)
def test_on_dyadic_scales_moved_quantizers_and_convolutions_change_no_bit(name, opener):
    model = model_of(name, "exact-integer", symmetric=True)
    proto, images = lowered(model), np.round(random_images(9, 12))
    kinds = {node.name: node.op_type for node in proto.graph.node}
    readers = {name: node for node in proto.graph.node for name in node.input}
    if name == "edsr":
        shuffles = [node for node in proto.graph.node if node.op_type == "DepthToSpace"]
        # The last one is behind the last convolution, which has a dozen channels now.
        assert not [node for node in shuffles[-1:] if readers[node.output[0]].op_type == "Conv"]
        assert kinds["tail.1"] == "Conv"
        assert {tap.layer: tap.block for tap in read_taps(proto) if tap.block > 1} == {"tail.0.2": 2, "tail.1": 2}
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        (found,) = runtime.run({"input": images}).values()
    np.testing.assert_array_equal(found, model(torch.from_numpy(images)).numpy())
