"""What runtimes compute wrongly or slowly is written another way: whole graphs, because cutting one open hides it."""

from __future__ import annotations

import functools

import numpy as np
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from odm_deploy import quantize
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings
from tests.every_layer import quantized_once
from tests.factories import OPENERS, UNFITTED, lowered, random_images


class MeanShifted(nn.Module):
    """A quantized layer right behind arithmetic per channel, on the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.05, 0.2, 0.4]).reshape(1, 3, 1, 1))
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.last = nn.Conv2d(48, 12, 1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(self.first((x - self.mean) * 3.0)), 2)


class Concatenating(nn.Module):
    """A 1x1 convolution that reads a Concat of float tensors, directly or through a ReLU."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.fuse, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        both = torch.cat((self.a(x), torch.relu(self.b(x))), 1)
        fused = self.fuse(torch.relu(both) if self.relu else both)
        return nn.functional.pixel_shuffle(self.last(fused), 2)


def throughout(module: nn.Module, bits: int, settings: CalibrationSettings | None = None):
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    return quantize(module, QuantizationPolicy(*[LayerBits(bits, bits)] * 4), images, settings=settings)


CASES = {
    "mean colour": lambda bits: throughout(MeanShifted(), bits),
    "concat": lambda bits: throughout(Concatenating(relu=False), bits),
    "concat, relu": lambda bits: throughout(Concatenating(relu=True), bits),
}


@functools.cache
def case(name: str, bits: int) -> QuantizedModel:
    torch.manual_seed(4)
    return CASES[name](bits)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CASES)
def test_whole_graphs_compute_what_torch_computes(name, bits, runtime):
    model = case(name, bits)
    x = random_images(21, 30, seed=7)
    expected = model(torch.from_numpy(x)).numpy()
    with OPENERS[runtime](lowered(model).SerializeToString()) as opened:
        difference = np.abs(opened.upscale(x) - expected) / expected.std()
    # Ties flip single codes; a channel or a branch computed wrongly moves most pixels.
    assert np.quantile(difference, 0.9) < 0.01


def test_bounds_behind_arithmetic_per_channel_are_per_channel():
    torch.manual_seed(4)
    # Gains would be arithmetic per channel everywhere.
    proto = lower(throughout(MeanShifted(), 4, CalibrationSettings(equalize=False)))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    bounds = {name: constants[name] for name in ("net.first.max", "net.first.min", "net.last.max", "net.last.min")}
    assert [bound.shape for bound in bounds.values()] == [(1, 3, 1, 1), (1, 3, 1, 1), (), ()]
    assert len(np.unique(bounds["net.first.max"])) == 1


def test_openvino_reads_such_bounds_rightly():
    """The smallest graph that goes wrong with scalar bounds, compiled for dynamic sizes by OpenVINO 2026.4."""

    def run(bound_shape):
        constants = {
            "mean": np.float32([114, 111, 103]).reshape(1, 3, 1, 1),
            "lowest": np.full(bound_shape, -118, np.float32),
            "highest": np.full(bound_shape, 103.25, np.float32),
            "scale": np.float32(14.75),
            "zero": np.int8(0),
        }
        nodes = [
            helper.make_node("Sub", ["x", "mean"], ["centered"]),
            helper.make_node("Max", ["centered", "lowest"], ["above"]),
            helper.make_node("Min", ["above", "highest"], ["between"]),
            helper.make_node("QuantizeLinear", ["between", "scale", "zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
        ]
        edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy"]
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "mean", edges[:1], edges[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        x = random_images(24, 32, seed=3)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        found = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)(x)[0]
        with OPENERS["onnxruntime"](model.SerializeToString()) as opened:
            return float(np.mean(found != opened.upscale(x)))

    assert run((1, 3, 1, 1)) == 0.0
    assert run(()) > 0.1, "OpenVINO computes this graph rightly now: the quirk can go"


class Smoothed(nn.Module):
    """Features made larger, convolved and made smaller again, by bicubic resizing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))

    def forward(self, x):
        height, width = x.shape[2:]
        x = self.first(x)
        larger = nn.functional.interpolate(x, size=(height * 3 // 2, width * 3 // 2), mode="bicubic")
        smaller = nn.functional.interpolate(torch.relu(self.body(larger)), size=(height, width), mode="bicubic")
        return nn.functional.pixel_shuffle(self.last(smaller + x), 2)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_onnxruntime_runs_bicubic_resizing_behind_integer_convolutions(runtime):
    model = quantized_once(Smoothed, profile="integer", bits="4", size=(24, 32), images=2)
    image = random_images(33, 50, seed=5)
    with OPENERS[runtime](lowered(model, target="cpu").SerializeToString()) as opened:
        found = opened.upscale(image)
    assert np.abs(found - model(torch.from_numpy(image)).numpy()).mean() < 0.05


class Shares(nn.Module):
    """A softmax over the channels of a signal before a quantizer, at once or with what only moves values between."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.between = between
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))

    def forward(self, x):
        x = self.first(x)
        if self.between == "transpose":
            shares = torch.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)
        elif self.between == "pool":
            shares = nn.functional.max_pool2d(torch.softmax(x, 1), 3, 1, 1)
        else:
            shares = torch.softmax(x, 1)
        return nn.functional.pixel_shuffle(self.last(self.body(shares) + x), 2)


class PooledTransposedConvolution(nn.Module):
    """A convolution of the transposed kind, whose weights are floats, between signals, and a pooling behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))
        self.larger = nn.ConvTranspose2d(12, 12, 4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        pooled = nn.functional.max_pool2d(self.larger(x + self.body(x)), 2)
        return nn.functional.pixel_shuffle(self.last(self.body(pooled) + x), 2)


class AddedTransposedConvolution(nn.Module):
    """The same, whose result a layer and a sum read, as in DRUNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.body, self.last = (nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in
                                            ((3, 12), (12, 12), (12, 3)))  # fmt: skip
        self.larger = nn.ConvTranspose2d(12, 12, 2, 2)

    def forward(self, x):
        x = self.first(x)
        larger = self.larger(x + self.body(x))
        return self.last(larger + self.body(larger))


@pytest.mark.parametrize(
    "network",
    [
        Shares("nothing"),
        Shares("transpose"),
        Shares("pool"),
        PooledTransposedConvolution(),
        AddedTransposedConvolution(),
    ],
    ids=["softmax", "softmax, transposed", "softmax, pooled", "transposed convolution, pooled", "and added"],
)
def test_onnxruntime_computes_between_grids(network):
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    model = quantize(network, QuantizationPolicy.parse("integer", "8"), images, settings=UNFITTED)
    graph = lower(model, LoweringOptions(target="cpu"))
    layers = compare_layers(model, graph, OPENERS["onnxruntime"], [random_images(24, 32, seed=5)])
    assert all(layer.is_clean for layer in layers), [layer for layer in layers if not layer.is_clean]


class CoarseInFrontOfFine(nn.Module):
    """A layer of few bits in front of one of eight, with what only moves values in between, or on one pixel."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.between = between
        self.first, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12))
        self.body = nn.Linear(12, 12) if between == "one pixel" else nn.Conv2d(12, 12, 3, padding=1)
        self.up = nn.Linear(12, 12)

    def forward(self, x):
        x = self.first(x)
        if self.between == "one pixel":
            gains = torch.sigmoid(self.up(torch.relu(self.body(x.mean((2, 3))))))
            x = x * gains[..., None, None]
        elif self.between == "slice":
            x = torch.relu(self.body(nn.functional.pad(x, (1, 0, 1, 0))))[:, :, 1:, 1:]
        else:
            x = torch.relu(self.body(x))
        if self.between == "pool":
            x = nn.functional.max_pool2d(x, 3, 1, 1)
        elif self.between == "view":
            x = x.view(x.shape[0], 3, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return nn.functional.pixel_shuffle(self.last(x), 2)


@pytest.mark.parametrize("between", ["nothing", "pool", "slice", "view", "one pixel"])
def test_onnxruntime_does_not_round_biases_by_visible_parts_of_a_step(between):
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    policy = QuantizationPolicy.parse("deploy", "3" if between == "one pixel" else "2")
    model = quantize(CoarseInFrontOfFine(between), policy, images, settings=UNFITTED)
    graph = lower(model, LoweringOptions(target="cpu"))
    layers = compare_layers(model, graph, OPENERS["onnxruntime"], [random_images(24, 32, seed=5)])
    assert all(layer.is_clean for layer in layers), [layer for layer in layers if not layer.is_clean]
