"""What becomes of a network as integer steps, and what is refused."""

from __future__ import annotations

import copy
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.imaging.pixels import round_to_uint8
from odm_deploy.networks.foreign import ForeignConfig, ForeignNetwork, foreign_network
from odm_deploy.proof.reference import TorchReference
from odm_deploy.quantization.exact.freeze import check_integer
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.program import (
    Add,
    AddConstant,
    Concat,
    Convolve,
    Enlarge,
    PixelShuffle,
    PRelu,
    Quantize,
    Relu,
)
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.exact_models import SIZES, calibrated_exact
from tests.factories import OPENERS, lowered, random_images, tiny_model, tiny_network


def edited(edit) -> QuantizedModel:
    """A copy of the exact EDSR after `edit(network)`."""
    model = calibrated_exact("edsr")
    network = copy.deepcopy(model.network)
    edit(network)
    return QuantizedModel(network)


@pytest.mark.parametrize("name", SIZES)
def test_every_layer_is_a_quantizer_and_a_convolution(name):
    model = calibrated_exact(name)
    program = integer_program(model)
    convolutions = [step for step in program.steps if isinstance(step, Convolve)]
    quantizers = {step.name: step for step in program.steps if isinstance(step, Quantize)}
    # In the order in which they run, which an RDN's module order is not.
    assert {step.layer for step in convolutions} == set(model.layers)
    assert len(convolutions) == len(quantizers) == len(model.layers)
    for step in convolutions:
        layer, quantizer = model.layers[step.layer], quantizers[step.sources[0]]
        assert (2.0**quantizer.exponent, quantizer.zero_point, quantizer.bits) == (
            layer.grid.scale,
            layer.grid.zero_point,
            layer.grid.bits,
        )
        units = torch.from_numpy(step.mantissa * 2.0**step.shift) * 2.0**step.exponent
        assert torch.equal(units, layer.scale.double() * layer.grid.scale)
        bias = torch.zeros(len(step.bias)) if layer.bias is None else layer.bias
        assert torch.equal(torch.from_numpy(step.bias * 2.0**step.exponent).float(), bias)


def test_what_lies_between_convolutions_is_there_once():
    kinds = {name: [type(step) for step in integer_program(calibrated_exact(name)).steps] for name in SIZES}
    edsr = kinds["edsr"]
    # Two mean shifts; two blocks and the global skip; a ReLU a block; one upsampling stage at x2.
    assert [edsr.count(kind) for kind in (AddConstant, Add, Relu, PixelShuffle)] == [2, 3, 2, 1]
    srresnet = kinds["srresnet"]
    assert [srresnet.count(kind) for kind in (AddConstant, Add, PRelu, PixelShuffle)] == [0, 3, 4, 1]
    rdn = kinds["rdn"]
    assert [rdn.count(kind) for kind in (Concat, Add, Relu, PixelShuffle)] == [5, 3, 4, 1]
    compact = kinds["compact"]
    assert [compact.count(kind) for kind in (Add, PRelu, Relu, PixelShuffle, Enlarge)] == [1, 2, 1, 1, 1]


def test_each_run_of_a_layer_is_a_step_of_its_own():
    model, images = calibrated_exact("again"), np.round(random_images(9, 11))
    program = integer_program(model)
    assert len({step.name for step in program.steps}) == len(program.steps)
    found = interpret(program, images.astype(np.uint8))
    np.testing.assert_array_equal(found, round_to_uint8(TorchReference(model).upscale(images)))


class Gated(nn.Module):
    """A sigmoid, which integers have no step for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(torch.sigmoid(self.first(x))), 2)


def test_what_integers_cannot_compute_is_refused_before_calibration():
    network = foreign_network(Gated(), input_range=255.0)
    seen = []

    def images():
        seen.append(1)
        yield torch.zeros(1, 3, 16, 16)

    with pytest.raises(InputError, match="there is no integer step for sigmoid"):
        calibrate(network, images(), QuantizationPolicy.parse("exact", "8"))
    assert not seen


class Written(nn.Module):
    """A network whose code computes what it can without modules."""

    def __init__(self, activate, before=lambda x: x, add=operator.add, **options) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.deep = nn.Conv2d(3, 8, 3, **options), nn.Conv2d(8, 8, 3, **options)
        self.last = nn.Conv2d(8, 12, 3, **options)
        self.activate, self.before, self.add = activate, before, add

    def forward(self, x):
        features = self.first(self.before(x))
        deep = self.deep(self.before(self.activate(features)))
        also = features
        total = self.add(features, deep)
        return F.pixel_shuffle(self.last(self.before(total + also)), 2)


SAME = {"padding": "same"}
WRITTEN = {
    "relu": lambda: Written(F.relu, **SAME),
    "method": lambda: Written(lambda x: x.relu(), **SAME),
    "clamp": lambda: Written(lambda x: x.clamp(min=0), **SAME),
    "leaky": lambda: Written(lambda x: F.leaky_relu(x, 0.25), **SAME),
    "in place": lambda: Written(lambda x: F.relu(x, inplace=True), **SAME),
    "method in place": lambda: Written(lambda x: x.relu_(), **SAME),
    "module in place": lambda: Written(nn.ReLU(inplace=True), **SAME),
    "sum in place": lambda: Written(F.relu, add=operator.iadd, **SAME),
    "method's sum": lambda: Written(F.relu, add=lambda a, b: a.add_(b), **SAME),
    "operand by name": lambda: Written(lambda x: torch.relu(input=x), **SAME),
    "padded": lambda: Written(F.relu, before=lambda x: F.pad(x, (1, 1, 1, 1))),
    "reflected": lambda: Written(F.relu, padding=1, padding_mode="reflect"),
    "replicated": lambda: Written(F.relu, before=lambda x: F.pad(x, (2, 0, 0, 2), "replicate")),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_functions_and_what_changes_its_input_are_steps_like_modules(name):
    images = [torch.from_numpy(random_images(24, 32))]
    model = quantize(WRITTEN[name](), QuantizationPolicy.parse("exact", "8"), images)
    image = random_images(13, 17, seed=3)
    expected = round_to_uint8(TorchReference(model).upscale(image))
    np.testing.assert_array_equal(interpret(integer_program(model), image.astype(np.uint8)), expected)
    for target, opener in (("cpu", "openvino"), ("tensorrt", "onnxruntime")):
        with OPENERS[opener](lowered(model, target=target).SerializeToString()) as runtime:
            np.testing.assert_array_equal(round_to_uint8(runtime.upscale(image)), expected)


REFUSED = {
    "a weighted sum": (
        Written(F.relu, add=lambda a, b: torch.add(a, b, alpha=0.5), padding=1),
        "no integer step for add",
    ),
    "a bounded one": (Written(lambda x: x.clamp(0, 90.0), padding=1), "no integer step for clamp"),
    "a fine slope": (Written(lambda x: F.leaky_relu(x, 0.1), padding=1), "the slope 0.1 has more than 8 binary digits"),
    "another border": (Written(F.relu, before=lambda x: F.pad(x, [1] * 4, value=3.0)), "no integer step for pad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_step_computes_is_refused_with_another_profile_as_advice(name):
    module, why = REFUSED[name]
    with pytest.raises(InputError, match=f"{why}.*--profile deploy"):
        check_integer(
            ForeignNetwork(ForeignConfig(scale=2, input_range=255.0), module), ["net.first", "net.deep", "net.last"]
        )


@pytest.mark.parametrize("how", [{"size": (8, 8)}, {"scale_factor": 1.5}, {"scale_factor": 2, "mode": "bilinear"}])
def test_only_repeated_values_are_an_enlargement(how):
    class Enlarged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(nn.functional.interpolate(x, **how))

    with pytest.raises(InputError, match="there is no integer step for interpolate"):
        check_integer(ForeignNetwork(ForeignConfig(scale=2, input_range=255.0), Enlarged()), ["net.conv"])


@pytest.mark.parametrize(
    ("activate", "why"),
    [
        (lambda x: x[..., : x.shape[2]], r"its code computes with the image's size \(\.shape\), in net; let it"),
        (lambda x: x[..., : x.size(2)], r"its code computes with the image's size \(\.size\), in net; let it"),
        (lambda x: x if x.mean() > 0 else -x, r"its code decides by sizes or values of the image what it computes"),
    ],
)
def test_code_that_looks_at_the_image_is_refused_in_its_own_words(activate, why):
    network = ForeignNetwork(ForeignConfig(scale=2, input_range=255.0), Written(activate, padding=1))
    with pytest.raises(InputError, match=f"{why}.*--profile deploy"):
        check_integer(network, ["net.first", "net.deep", "net.last"])


def test_a_float_layer_is_refused_by_name():
    with pytest.raises(InputError, match=r"head\.0 is a float Conv2d; quantize every layer"):
        integer_program(tiny_model(4))


def test_ordinary_and_free_grids_are_refused_by_name():
    def rescale(network):
        network.get_submodule("body.0.body.2").grid = Grid(0.3, 4, 4)

    def free(network):
        network.get_submodule("body.0.body.2").grid = Grid.free(-1.0, 2.0, 4)

    with pytest.raises(InputError, match=r"body\.0\.body\.2 has the scale 0\.3, which is no power of two"):
        integer_program(edited(rescale))
    with pytest.raises(InputError, match=r"body\.0\.body\.2 has a free grid"):
        integer_program(edited(free))


@pytest.mark.parametrize("key", ["shift", "gain"])
def test_offsets_in_front_of_a_quantizer_are_refused_by_name(key):
    def offset(network):
        setattr(network.get_submodule("body.0.body.2"), key, torch.full((8, 1, 1), 0.5))

    with pytest.raises(InputError, match=r"body\.0\.body\.2 is shifted or scaled per channel first"):
        integer_program(edited(offset))


def test_a_bias_with_too_many_digits_is_refused_by_name():
    def fine_bias(network):
        network.get_submodule("tail.1").bias[0] = 1e-9

    with pytest.raises(InputError, match=r"tail\.1 is not exact in float32: its constants need units of 2\^-\d+"):
        integer_program(edited(fine_bias))


def test_operations_without_integers_are_refused_by_name():
    def sigmoid(network):
        network.add_mean = nn.Sigmoid()

    def factor(network):
        network.body[0].residual_scale = 0.1

    with pytest.raises(InputError, match="no integer step for"):
        integer_program(edited(sigmoid))
    with pytest.raises(InputError, match=r"no integer step for mul, in body\.0; "):
        integer_program(edited(factor))
    with pytest.raises(InputError, match="swinir is not integer arithmetic throughout"):
        integer_program(QuantizedModel(tiny_network("swinir")))
