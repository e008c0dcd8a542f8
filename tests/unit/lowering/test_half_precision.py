"""Half precision for the rest: quantizers and image edges stay float32, everything else computes in float16."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.proof.reference import TorchReference
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.model import QuantizedModel
from tests.factories import OPENERS, lowered, quantized, random_images, tiny_model, tiny_network


@pytest.fixture(scope="module", params=[(4, "asymmetric"), (8, "asymmetric"), (3, "free")], ids=str)
def model(request):
    return tiny_model(*request.param)


@pytest.fixture(scope="module")
def half(model):
    return lowered(model, precision="fp16")


def types_of(proto):
    """Element type of every tensor, by the standard's own inference."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    return found | {value.name: value.type.tensor_type.elem_type for value in values}


def test_quantizers_stay_float32_with_unrounded_scales(model, half):
    types, full = types_of(half), lowered(model)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in full.graph.initializer}
    quantizers = [node for node in half.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantizers) == 3 * len(model.layers)
    for node in quantizers:
        assert types[node.input[1]] == TensorProto.FLOAT
    for tensor in half.graph.initializer:
        if tensor.name.endswith((".scale_x", ".scale_w", ".center", ".max", ".min")):
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), scales[tensor.name])
            assert tensor.data_type == TensorProto.FLOAT
    for node in half.graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type in ("Max", "Min", "Sub") and ".body." in node.name):
            assert types[node.input[0]] == TensorProto.FLOAT


def test_every_convolution_computes_in_half_precision(half):
    types = types_of(half)
    for node in half.graph.node:
        if node.op_type in ("Conv", "Relu", "DepthToSpace"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}, node.name


def test_image_edges_stay_float32(half):
    types = types_of(half)
    first, last = half.graph.node[0], half.graph.node[-1]
    assert (first.op_type, last.op_type) == ("Add", "Add")
    assert {types[name] for name in (*first.input, *first.output, *last.input, *last.output)} == {TensorProto.FLOAT}
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_names_and_shapes_of_the_interface_do_not_change(model, half):
    full = lowered(model)
    assert half.graph.input == full.graph.input
    assert half.graph.output == full.graph.output


def test_one_cast_a_tensor_and_direction(half):
    casts = [(node.input[0], node.attribute[0].i) for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    assert casts


@pytest.mark.parametrize("opener", ["onnx_reference", "onnxruntime", "openvino"])
def test_result_is_the_reference_within_half_precision(model, half, opener):
    images = random_images(16, 20)
    expected = TorchReference(model).upscale(images)
    with OPENERS[opener](half.SerializeToString()) as runtime:
        difference = np.abs(runtime.upscale(images) - expected)
    assert difference.dtype == np.float32
    # float16 has steps of 1/16 around 100; a code that flips for it moves its neighbourhood.
    assert 0 < np.sqrt(np.mean(difference**2)) < 1.0


def test_layers_flip_at_the_rate_of_half_precision_sources_and_by_one_step(model, half):
    *layers, output = compare_layers(model, half, OPENERS["onnx_reference"], [random_images(16, 20)])
    assert [layer.name for layer in layers] == list(model.layers)
    assert output.max_step <= 1
    assert max(layer.max_step for layer in layers) <= 1
    assert sum(layer.flips for layer in layers) < 0.02 * sum(layer.codes for layer in layers)


@functools.cache
def windows() -> QuantizedModel:
    return quantized(tiny_network("swinir"), lambda *_: (8, "asymmetric", "per_channel"))


def test_a_network_of_windows_reads_and_writes_images_in_float32():
    model = windows()
    half = lowered(model, precision="fp16")
    types = types_of(half)
    images = [node for node in half.graph.node if "mean" in node.input]
    assert [node.op_type for node in images] == ["Sub", "Add"]
    assert {types[name] for node in images for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
    softmax = [node for node in half.graph.node if node.op_type in ("Softmax", "LayerNormalization", "Gelu")]
    assert {types[node.output[0]] for node in softmax} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("precision", "lowest"), [("fp16", -65504), ("bf16", -3.3895314e38)])
def test_bounds_that_half_precision_does_not_reach_are_its_last_numbers(precision, lowest):
    """Those that keep OpenVINO from computing SwinIR's first layer wrongly are the last of float32."""
    model = windows()
    half = lowered(model, precision=precision)
    bounds = [tensor for tensor in half.graph.initializer if ".lowest." in tensor.name]
    assert [float(numpy_helper.to_array(tensor)) for tensor in bounds] == [pytest.approx(lowest)]


@pytest.mark.parametrize("opener", ["onnx_reference", "openvino"])
def test_bfloat16_keeps_quantizers_and_edges_and_is_three_bits_coarser(model, half, opener):
    brain = lowered(model, precision="bf16")
    types = types_of(brain)
    assert brain.opset_import[0].version == 22
    for node in brain.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.BFLOAT16}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == TensorProto.FLOAT
    images = random_images(16, 20)
    expected = TorchReference(model).upscale(images)
    with OPENERS[opener](brain.SerializeToString()) as runtime:
        difference = np.sqrt(np.mean((runtime.upscale(images) - expected) ** 2))
    with OPENERS[opener](half.SerializeToString()) as runtime:
        of_float16 = np.sqrt(np.mean((runtime.upscale(images) - expected) ** 2))
    # A code that flips for it moves its neighbourhood, as with float16.
    assert of_float16 < difference < 2.0


class WithFloatsOnly(nn.Module):
    """An operator that ONNX has in float32 only, and one with an input that is float32 whatever the others are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.celu(self.second(self.first(x))), scale_factor=2, mode="nearest")
        column = torch.linspace(0, 1, x.shape[2]).view(1, 1, -1, 1).expand(x.shape[0], 1, -1, x.shape[3])
        return self.last(torch.cat([x, column], 1))


@functools.cache
def with_floats_only() -> QuantizedModel:
    torch.manual_seed(0)
    return quantize(WithFloatsOnly().eval(), 8, [random_images(24, 20)[0].transpose(1, 2, 0).astype(np.uint8)])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_onnx_knows_in_float32_only_stays_so(precision):
    images = random_images(24, 20)
    model = with_floats_only()
    graph = lowered(model, precision=precision)
    types = types_of(graph)
    of = {node.op_type: node for node in graph.graph.node}
    assert types[of["Celu"].input[0]] == types[of["Celu"].output[0]] == TensorProto.FLOAT
    assert types[of["Resize"].input[2]] == TensorProto.FLOAT
    assert types[of["Resize"].output[0]] != TensorProto.FLOAT
    with OPENERS["onnx_reference"](graph.SerializeToString()) as runtime:
        difference = runtime.upscale(images) - TorchReference(model).upscale(images)
    assert np.sqrt(np.mean(difference**2)) < 2.0
