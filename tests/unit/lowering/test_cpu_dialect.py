"""The `cpu` dialect: the codes of the reference, on every implementation, from nodes that CPU kernels fuse."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import openvino
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.nn.functional import pad, pixel_shuffle

from odm_deploy import quantize
from odm_deploy.errors import UsageError
from odm_deploy.grid import Grid
from odm_deploy.lowering import float_twin as float_twin_module
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.lowering.metadata import read_taps
from odm_deploy.lowering.scattering import gathered, scattered
from odm_deploy.lowering.unsaturated import for_openvino
from odm_deploy.networks.registry import build_network
from odm_deploy.proof.layer_parity import OUTPUT
from odm_deploy.proof.reference import TorchReference
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.proof.teacher_forcing import shuffled, unshuffled
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from tests.exact_models import calibrated_exact
from tests.factories import OPENERS, lowered, model_of_all_kinds, quantized, random_images, tiny_network

FUSES_AND_ROUNDS_BIASES = "onnxruntime"
EXACT_OPENERS = [name for name in OPENERS if name != FUSES_AND_ROUNDS_BIASES]
MOST_FLIPS = 1e-4


@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_power_of_two_scales_agree_to_the_bit(opener):
    model, images = model_of_all_kinds(power_of_two=True), random_images(13, 18, count=2)
    proto = lowered(model, target="cpu")
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), TorchReference(model).upscale(images))
    layers = compare_layers(model, proto, OPENERS[opener], [random_images(9, 11, seed=4)])
    assert {layer.name: layer.flips for layer in layers} == dict.fromkeys([*model.layers, OUTPUT], 0)


@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_ordinary_scales_flip_hardly_a_code_in_any_layer(opener):
    model = model_of_all_kinds(power_of_two=False)
    layers = compare_layers(model, lowered(model, target="cpu"), OPENERS[opener], [random_images(16, 20)])
    assert max(layer.max_step for layer in layers) <= 1
    assert sum(layer.flips for layer in layers) <= MOST_FLIPS * sum(layer.codes for layer in layers)


@pytest.mark.parametrize("name", ["edsr", "rdn"])
@pytest.mark.parametrize("opener", OPENERS)
def test_exact_models_give_the_same_bytes_in_both_dialects(opener, name):
    model, images = calibrated_exact(name), np.round(random_images(13, 18))
    expected = TorchReference(model).upscale(images)
    for target in ("tensorrt", "cpu"):
        with OPENERS[opener](lowered(model, target=target).SerializeToString()) as runtime:
            np.testing.assert_array_equal(runtime.upscale(images), expected)
    layers = compare_layers(model, lowered(model, target="cpu"), OPENERS[opener], [images])
    assert [layer.flips for layer in layers] == [0] * len(layers)


def all_quantized(scale: int = 4, bits: int = 8) -> QuantizedModel:
    """EDSR with every layer quantized, on the grids that exact models have: codes of zero are even."""
    model = quantized(tiny_network(scale=scale), lambda *_: (bits, "asymmetric", "per_channel"), power_of_two=True)
    for layer in model.layers.values():
        layer.grid = dataclasses.replace(layer.grid, zero_point=layer.grid.zero_point // 2 * 2)
    return model


def test_no_operator_pads_or_shifts_and_codes_are_bytes_bounded_as_integers():
    for bits in (4, 8):
        graph = lowered(all_quantized(bits=bits), target="cpu").graph
        kinds = [node.op_type for node in graph.node]
        assert not {"Pad", "Sub", "Max", "Min"} & set(kinds)
        assert ("Clip" in kinds) == (bits < 8)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
        assert {zero.data_type for zero in zeros} == {TensorProto.UINT8}


def test_quantizers_stand_before_shuffles_and_the_narrow_last_convolution_does_too():
    model = all_quantized()
    proto = lowered(model, target="cpu")
    producers = {node.output[0]: node for node in proto.graph.node}
    shuffles = [node for node in proto.graph.node if node.op_type == "DepthToSpace"]
    assert [producers[node.input[0]].op_type for node in shuffles] == ["QuantizeLinear", "Conv"]
    assert {tap.layer: tap.block for tap in read_taps(proto) if tap.block > 1} == {"tail.0.2": 2, "tail.1": 2}
    images = random_images(11, 14, count=2)
    for opener in ("onnx_reference", "onnxruntime_unfused", "openvino"):
        with OPENERS[opener](proto.SerializeToString()) as runtime:
            np.testing.assert_array_equal(runtime.upscale(images), TorchReference(model).upscale(images))


@pytest.mark.parametrize(("block", "size"), [(2, 3), (3, 3), (2, 9), (4, 5), (2, 1)])
def test_a_convolution_behind_a_shuffle_is_one_before_it(block, size):
    generator = torch.Generator().manual_seed(block * size)
    codes = torch.randint(-128, 128, (3, 4, size, size), generator=generator).to(torch.int8)
    x = torch.randint(-50, 50, (2, 4 * block**2, 7, 6), generator=generator).double()
    behind = nn.functional.conv2d(nn.functional.pixel_shuffle(x, block), codes.double(), padding=size // 2)
    moved = torch.from_numpy(scattered(codes.numpy(), block)).double()
    before = nn.functional.conv2d(x, moved, padding=(moved.shape[2] // 2, moved.shape[3] // 2))
    assert torch.equal(nn.functional.pixel_shuffle(before, block), behind)
    again = gathered(moved.numpy(), block)
    assert again is not None
    np.testing.assert_array_equal(again, codes.numpy())
    moved[-1, -1, 0, 0] += 1
    assert gathered(moved.numpy(), block) is None


def test_the_float_twin_has_the_convolutions_of_the_float_network(monkeypatch):
    model = all_quantized()
    proto = lowered(model, target="cpu")
    twin = float_twin(proto)
    constants = {tensor.name: tensor for tensor in twin.graph.initializer}
    kernels = {node.name: list(constants[node.input[1]].dims) for node in twin.graph.node if node.op_type == "Conv"}
    assert kernels == {name: list(layer.codes.shape) for name, layer in model.layers.items()}
    monkeypatch.setattr(float_twin_module, "gathered", lambda *_: None)
    moved = float_twin(proto)
    assert sum(np.prod(size) for size in kernels.values()) < sum(
        np.prod(tensor.dims) for tensor in moved.graph.initializer if len(tensor.dims) == 4
    )
    image = random_images(11, 14)
    results = []
    for graph in (twin, moved):
        with OPENERS["onnxruntime"](graph.SerializeToString()) as runtime:
            results.append(runtime.upscale(image))
    np.testing.assert_allclose(*results, atol=1e-2)


def test_shuffling_codes_is_pixel_shuffle_and_has_an_inverse():
    x = torch.arange(2 * 12 * 5 * 4).reshape(2, 12, 5, 4)
    for block in (1, 2):
        assert np.array_equal(shuffled(x.numpy(), block), nn.functional.pixel_shuffle(x, block).numpy())
        assert np.array_equal(unshuffled(shuffled(x.numpy(), block), block), x.numpy())


def test_low_bit_weights_use_the_room_in_int8_and_stay_the_same_numbers():
    model = all_quantized(bits=2)
    proto = lowered(model, target="cpu")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    producers = {node.output[0]: node for node in proto.graph.node}
    for node in proto.graph.node:
        layer = model.layers.get(node.name)
        if node.op_type != "Conv" or layer is None or node.name == "tail.1":
            continue
        codes, scale, _ = (constants[name] for name in producers[node.input[1]].input)
        assert 32 <= np.abs(codes.astype(int)).max() <= 127
        weight = codes.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
        np.testing.assert_array_equal(weight, layer.weight.numpy())


def test_half_precision_is_no_matter_of_the_graph_on_cpus():
    with pytest.raises(UsageError, match="--target cpu with --precision fp16"):
        LoweringOptions("fp16", target="cpu")


def with_signals(bits: int) -> QuantizedModel:
    """EDSR whose sums and outputs lie on grids; at 8 bits, input grids equal those of what they read."""
    network = tiny_network(scale=2, blocks=2, features=4)
    model = quantized(network, lambda *_: (bits, "asymmetric", "per_channel"), power_of_two=True)
    eight = Grid(0.25, 128, 8)
    layers = {
        name: FrozenLayer(layer.weight_codes, eight if bits == 8 and name != "head.0" else layer.grid, layer.bias)
        for name, layer in model.layers.items()
    }
    names = ["head.0", "body.0.body.2", "body.0.sum", "body.1.body.2", "body.1.sum", "body.2", "sum", "tail.0.0"]
    return freeze(network, layers, signals={f"{name}.output": eight for name in names})


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_signals_and_inputs_on_one_grid_are_one_quantizer(opener, bits):
    model, images = with_signals(bits), random_images(9, 12)
    proto = lowered(model, target="cpu")
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    merged = [tap for tap in read_taps(proto) if tap.same_as]
    assert len(quantizers) + len(merged) == len(model.grids)
    assert bool(merged) == (bits == 8)
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), TorchReference(model).upscale(images))
    layers = compare_layers(model, proto, OPENERS[opener], [images])
    assert {layer.name: layer.flips for layer in layers if layer.flips} == {}


NETWORKS = {
    "edsr": {"scale": 2, "blocks": 2, "features": 8},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "features": 8, "growth": 8},
    "srresnet": {"scale": 2, "blocks": 2, "features": 8},
}


@functools.cache
@functools.cache
@functools.cache
@functools.cache
def dyadic_with_signals(name: str, bits: int = 8, **wider: int) -> QuantizedModel:
    """A small network on dyadic scales, whose tensors between layers lie on grids; at 8 bits layers read codes."""
    torch.manual_seed(5)
    network = build_network(name, {**NETWORKS[name], **wider}).eval()
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(2)]
    policy = QuantizationPolicy.parse("exact-integer", str(bits))
    return calibrate(network, images, policy, CalibrationSettings(adaptive_rounding=False, correct_bias=False))[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "scale"), [("edsr", 4), ("edsr", 3), ("srresnet", 4)])
@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_wide_shuffles_move_all_channels_of_a_pixel_at_once(opener, name, scale, bits):
    model, images = dyadic_with_signals(name, bits, scale=scale, features=16), np.round(random_images(9, 12))
    proto = lowered(model, target="cpu")
    modes = [
        attribute.s
        for node in proto.graph.node
        for attribute in node.attribute
        if node.op_type == "DepthToSpace" and attribute.name == "mode"
    ]
    assert b"DCR" in modes
    by_pixel = {tap.by_pixel for tap in read_taps(proto)}
    assert by_pixel == {1, 3 if scale == 3 else 2}
    expected = TorchReference(model).upscale(images)
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), expected)
    layers = compare_layers(model, proto, OPENERS[opener], [images])
    assert [layer.flips for layer in layers] == [0] * len(layers)
    twin, plain = float_twin(proto), float_twin(lowered(model))
    with OPENERS[opener](twin.SerializeToString()) as one, OPENERS[opener](plain.SerializeToString()) as other:
        # A mean colour that is the last zero point is in the second alone.
        assert np.ptp(one.upscale(images) - other.upscale(images)) < 1e-3


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_codes_are_joined_and_rectified_as_they_are(opener, bits):
    model, images = dyadic_with_signals("rdn", bits), np.round(random_images(9, 12))
    proto = lowered(model, target="cpu")
    assert "Relu" not in [node.op_type for node in proto.graph.node]
    readers = {name: node for node in proto.graph.node for name in node.input}
    behind = [readers[node.output[0]].op_type for node in proto.graph.node if node.op_type == "Concat"]
    assert ("QuantizeLinear" in behind) == (bits < 8)
    expected = TorchReference(model).upscale(images)
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), expected)
    layers = compare_layers(model, proto, OPENERS[opener], [images])
    assert [layer.flips for layer in layers] == [0] * len(layers)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_dyadic_signals_give_the_same_bytes_with_bf16_for_the_rest(name, bits):
    model, images = dyadic_with_signals(name, bits), np.round(random_images(17, 20))
    expected = TorchReference(model).upscale(images)
    proto = lowered(model, target="cpu")
    given, core = for_openvino(proto.SerializeToString(), proto), openvino.Core()
    for precision in ("f32", "bf16"):
        # Without the mark of exact models, by which this project's runtime never takes bf16.
        settings = {"INFERENCE_PRECISION_HINT": precision, **given.settings}
        compiled = core.compile_model(core.read_model(given.model), "CPU", settings)
        np.testing.assert_array_equal(compiled([images.astype(np.float32)])[0], expected)


def test_a_mean_colour_behind_the_last_quantizer_is_its_zero_point():
    model, images = dyadic_with_signals("edsr"), np.round(random_images(9, 12))
    proto = lowered(model, target="cpu")
    last = proto.graph.node[-1]
    assert (last.op_type, last.output[0]) == ("DequantizeLinear", proto.graph.output[0].name)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert model.signals["tail.1.output"].grid.zero_point == 110
    assert constants[last.input[2]] == 0
    for opener in EXACT_OPENERS:
        with OPENERS[opener](proto.SerializeToString()) as runtime:
            np.testing.assert_array_equal(runtime.upscale(images), TorchReference(model).upscale(images))
    layers = compare_layers(model, proto, OPENERS["openvino"], [images])
    assert [layer.flips for layer in layers] == [0] * len(layers)


@pytest.mark.parametrize("edges", [{}, {"layout": "nhwc", "order": "bgr"}])
@pytest.mark.parametrize("opener", EXACT_OPENERS)
def test_uint8_images_are_the_last_codes_as_they_are(opener, edges):
    model, images = dyadic_with_signals("edsr"), np.round(random_images(9, 12))
    proto = lowered(model, target="cpu", io="uint8", **edges)
    assert not {"Round", "Max"} & {node.op_type for node in proto.graph.node}
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    expected = TorchReference(model).upscale(images)
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), expected)


class FloatBetween(nn.Module):
    """Float layers between grids: a transposed convolution, and one that a rectifier follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.plain = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        deep = self.deep(torch.relu(self.first(x)))
        deep = deep + torch.relu(self.plain(deep))
        return self.last(self.wide(torch.relu(self.up(deep))))


def test_weights_of_float_layers_between_grids_stay_float():
    policy = QuantizationPolicy.parse("integer", "8", overrides={"net.plain": "float"})
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    model = quantize(FloatBetween(), policy, images)
    assert "net.plain" not in model.layers
    layers = compare_layers(model, lowered(model, target="cpu"), OPENERS["onnxruntime"], [random_images(16, 20)])
    assert sum(layer.flips for layer in layers) <= MOST_FLIPS * sum(layer.codes for layer in layers)


class Recurrent(nn.Module):
    """Layers that run twice: one whose results are multiplied, one behind pixel shuffles."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.also_up = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        deep = self.first(x)
        for _ in range(2):
            deep = deep + self.shared(deep) * 0.1
        return self.last(pixel_shuffle(self.up(deep), 2)) + self.last(pixel_shuffle(self.also_up(deep), 2))


def test_a_layer_that_runs_several_times_keeps_its_weights():
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    model = quantize(Recurrent(), QuantizationPolicy.parse("integer", "8"), images)
    layers = compare_layers(model, lowered(model, target="cpu"), OPENERS["onnxruntime"], [random_images(16, 20)])
    assert [layer.name for layer in layers if not layer.is_clean] == []


class Clipped(nn.Module):
    """A clip between convolutions, none of whose bounds is a level of the grid before it."""

    def __init__(self, clip: nn.Module, pads: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=0 if pads else 1)
        self.deep.weight.data *= 40.0
        self.clip, self.pads = clip, pads

    def forward(self, x):
        x = self.clip(self.deep(self.first(x)))
        return pixel_shuffle(self.last(pad(x, [1] * 4, "reflect") if self.pads else x), 2)


class AtMost(nn.Module):
    """A clip without a lower bound."""

    def forward(self, x):
        return x.clamp(max=4.7)


CLIPS = {"relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-3.1, 4.7), "at most": AtMost}


@pytest.mark.parametrize("profile", ["integer", "engine"])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("clip", CLIPS)
def test_what_is_clipped_ends_at_its_bounds(clip, pads, profile):
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    model = quantize(Clipped(CLIPS[clip](), pads), QuantizationPolicy.parse(profile, "8"), images)
    for target, opener in itertools.product(["cpu", "tensorrt"], ["onnxruntime", "openvino"]):
        layers = compare_layers(model, lowered(model, target=target), OPENERS[opener], [random_images(16, 20)])
        assert [(target, opener, layer.name) for layer in layers if not layer.is_clean] == []
