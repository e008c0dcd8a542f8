"""The `tensorrt` dialect node by node: what TensorRT runs as int8, and nothing that makes it fall back to float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from torch import nn

from odm_deploy.grid import Grid
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.config import NetworkConfig
from odm_deploy.proof.reference import TorchReference
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.weights import quantize_weight
from tests.factories import OPENERS, lowered, model_of_all_kinds, random_images


class _View:
    """Look-ups in a lowered graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.producers = {node.output[0]: node for node in proto.graph.node}
        self.nodes = {node.name: node for node in proto.graph.node}

    def chain_before(self, conv: onnx.NodeProto, ops: set[str]) -> list[onnx.NodeProto]:
        """The nodes in front of a convolution's input, nearest last, as far as they are one of `ops`."""
        chain: list[onnx.NodeProto] = []
        node = self.producers[conv.input[0]]
        while node.op_type in ops:
            chain.insert(0, node)
            if node.input[0] not in self.producers:
                break
            node = self.producers[node.input[0]]
        return chain


QUANTIZER = {"Pad", "Div", "Round", "Mul", "Sub", "Max", "Min", "QuantizeLinear", "DequantizeLinear"}


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "power_of_two"])
def model(request):
    return model_of_all_kinds(power_of_two=request.param)


@pytest.fixture(scope="module")
def view(model):
    return _View(lowered(model))


def expected_chain(grid: Grid) -> list[str]:
    """The operators the module's docstring promises for a grid."""
    if grid.is_free or (grid.bits == 8 and grid.zero_point != 128):
        even = ["Div", "Round", "Mul"] if not grid.is_free and grid.is_power_of_two and grid.zero_point % 2 else []
        # A free grid pads with a level of its own, in the network; there the convolution has no padding left.
        front = ["Pad", *even, "Sub"]
        bounds = ["Max", "Min"] if grid.bits < 8 else []
    else:
        front, bounds = [], ["Max", "Min"] if grid.bits < 8 else []
    return [*front, *bounds, "QuantizeLinear", "DequantizeLinear"]


def test_each_grid_becomes_the_chain_that_folds_into_one_kernel(model, view):
    for name, layer in model.layers.items():
        chain = [node.op_type for node in view.chain_before(view.nodes[name], QUANTIZER)]
        # Mean shift and pixel shuffle in front of head and tail are the network's.
        assert chain[-len(expected_chain(layer.grid)) :] == expected_chain(layer.grid), name


def test_bounds_are_the_first_and_last_level(model, view):
    for name, layer in model.layers.items():
        grid = layer.grid
        if grid.bits == 8:
            continue
        lowest = -grid.code_half if grid.is_free else -grid.zero_point
        scale = np.float32(grid.scale)
        assert view.constants[f"{name}.max"] == np.float32(lowest) * scale
        assert view.constants[f"{name}.min"] == np.float32(lowest + grid.code_max) * scale


def test_activations_are_int8_with_zero_point_zero_and_scalar_float_scales(model, view):
    for name, layer in model.layers.items():
        dequantize = view.producers[view.nodes[name].input[0]]
        quantize = view.producers[dequantize.input[0]]
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        scale, zero = (view.constants[operand] for operand in quantize.input[1:])
        assert (scale.shape, scale.dtype, float(scale)) == ((), np.float32, layer.grid.scale)
        assert (zero.shape, zero.dtype, int(zero)) == ((), np.int8, 0)


def test_weights_are_the_models_codes_dequantized_on_axis_0(model, view):
    for name, layer in model.layers.items():
        node = view.producers[view.nodes[name].input[1]]
        assert node.op_type == "DequantizeLinear"
        codes, scale, zero = (view.constants[operand] for operand in node.input)
        np.testing.assert_array_equal(codes, layer.codes.numpy())
        assert codes.dtype == zero.dtype == np.int8
        assert not zero.any()
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        if layer.scale.numel() > 1:
            assert axes == [0]
            assert scale.shape == zero.shape == (codes.shape[0],)
        else:
            assert scale.shape == zero.shape == ()


def test_biases_are_plain_floats_and_the_shift_is_in_them(model, view):
    for name, layer in model.layers.items():
        grid = layer.grid
        bias = view.constants[view.nodes[name].input[2]]
        assert bias.dtype == np.float32
        center = grid.center if grid.is_free else grid.scale * (128 - grid.zero_point) if grid.bits == 8 else 0.0
        weight = layer.codes.double() * layer.scale.double().reshape(-1, 1, 1, 1)
        expected = layer.bias.double() + center * weight.sum((1, 2, 3))
        np.testing.assert_allclose(bias, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_no_clip_and_no_quantized_bias(view):
    operators = {node.op_type for node in view.nodes.values()}
    assert "Clip" not in operators
    assert not any(array.dtype == np.int32 for array in view.constants.values())
    quantizers = [node for node in view.nodes.values() if node.op_type == "QuantizeLinear"]
    assert all(len(node.input) == 3 and node.input[2] for node in quantizers)


class _OneLayer(SuperResolutionNetwork):
    """A network of one convolution, read once or twice."""

    name = "one-layer"

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(NetworkConfig(scale=1))
        self.conv = conv

    def forward(self, x):
        """Convolve."""
        return self.conv(x)


def one_layer(conv: nn.Conv2d, grid: Grid, *, bias: bool = True) -> QuantizedModel:
    codes = quantize_weight(conv.weight, 8)
    return freeze(_OneLayer(conv), {"conv": FrozenLayer(codes, grid, conv.bias if bias else None)})


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 3, 5, padding=2),
        nn.Conv2d(3, 3, 3, padding=2, dilation=2, stride=2),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 3, 1, bias=False),
        nn.Conv2d(3, 3, (1, 3), padding=(0, 1)),
        nn.Conv2d(3, 3, (3, 5), padding=(1, 2)),
    ],
    ids=["5x5", "dilated, strided", "depthwise", "1x1 without bias", "1x3", "3x5"],
)
def test_shifts_are_exact_for_every_kind_of_convolution(conv):
    model = one_layer(conv, Grid(1.0, 3, 8), bias=conv.bias is not None)
    images = random_images(12, 15)
    expected = TorchReference(model).upscale(images)
    with OPENERS["onnx_reference"](lower(model).SerializeToString()) as runtime:
        np.testing.assert_allclose(runtime.upscale(images), expected, rtol=0, atol=2e-4)


def test_uneven_padding_is_no_obstacle_without_a_shift():
    model = one_layer(nn.Conv2d(3, 3, (1, 3), padding=(0, 1)), Grid(1.0, 3, 7))
    proto = lower(model)
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
