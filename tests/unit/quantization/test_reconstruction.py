"""Gains change nothing in float; ranges and codes bring a layer's output nearer to it; patches are what it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy.networks.foreign import foreign_network
from odm_deploy.proof.layer_parity import OUTPUT
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.equalization import EXPONENTS, channel_offsets, offset_inputs, offset_weights
from odm_deploy.quantization.patches import layer_patches
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from tests.factories import OPENERS, lowered, random_images

OFF = {"equalize": False, "output_ranges": False, "adaptive_rounding": False, "correct_bias": False}


class Unequal(nn.Module):
    """Channels a hundred times as wide as others, as networks without normalisation have; images in 0..255."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.deep = nn.Conv2d(features, features, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(features, features, 1)
        self.rows = nn.Linear(features, features)
        self.last = nn.Conv2d(features, 3 * 4, 3, padding=1)

    def forward(self, x):
        deep = torch.relu(self.deep(torch.relu(self.first(x))))
        deep = self.mix(deep)
        deep = self.rows(deep.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return nn.functional.pixel_shuffle(self.last(deep), 2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(4)
    module = Unequal()
    spread = torch.logspace(-1, 1, 8)
    with torch.no_grad():
        module.first.weight.mul_(spread.reshape(-1, 1, 1, 1))
        module.deep.weight.div_(spread.reshape(2, 1, 4, 1, 1).expand(-1, 4, -1, -1, -1).reshape(8, 4, 1, 1))
        module.mix.weight.mul_(spread.flip(0).reshape(-1, 1, 1, 1))
        module.rows.weight.div_(spread.flip(0))
    return foreign_network(module, input_range=255.0)


@pytest.fixture(scope="module")
def images():
    return [torch.from_numpy(random_images(32, 40, seed=seed)) for seed in range(4)]


def all_layers(bits: int) -> QuantizationPolicy:
    return QuantizationPolicy(*[LayerBits(bits, bits)] * 4)


def psnr_to_float(model, network) -> float:
    image = torch.from_numpy(random_images(48, 48, seed=50))
    with torch.no_grad():
        return 10 * float(torch.log10(255**2 / (model(image) - network(image)).square().mean()))


@pytest.mark.parametrize("name", ["net.first", "net.deep", "net.mix", "net.rows"])
def test_patches_times_weights_are_the_layers_output(network, images, name):
    layer = network.get_submodule(name)
    seen = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    (patches,) = layer_patches(network, images[:1], [name])
    handle.remove()
    output = patches.inputs @ patches.weight.transpose(1, 2)
    rows = output.permute(1, 0, 2).flatten(1) + patches.bias
    expected = seen[0].flatten(0, -2) if name == "net.rows" else seen[0].permute(0, 2, 3, 1).flatten(0, -2)
    torch.testing.assert_close(rows, expected[:: len(expected) // len(rows)][: len(rows)], rtol=1e-4, atol=1e-3)


def test_the_network_runs_once_and_no_further_than_its_patches_are_taken(network, images):
    names = ["net.first", "net.deep", "net.mix", "net.rows"]
    reached, passes, taken = [], [], []
    handles = [network.register_forward_pre_hook(lambda _, inputs: passes.extend([] if inputs[0].is_meta else [1]))]
    for name in names:
        layer = network.get_submodule(name)

        def reach(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            # Without data it runs to see which batches it takes.
            reached.extend([] if inputs[0].is_meta else [name])

        handles.append(layer.register_forward_pre_hook(reach))
    for patches in layer_patches(network, images, names):
        taken.append(patches.name)
        # Of those that ran to count how often each does, none is left.
        assert len(reached) - len(names) <= len(taken) + 2
    for handle in handles:
        handle.remove()
    assert taken == names
    assert len(passes) == 2


@pytest.mark.parametrize("name", ["net.deep", "net.mix", "net.rows"])
@pytest.mark.parametrize("exponents", EXPONENTS)
def test_offsets_change_nothing_in_float(network, images, name, exponents):
    (patches,) = layer_patches(network, images, [name])
    offsets = channel_offsets(patches, *exponents, shifted=not patches.padded)
    assert offsets.gain is not None
    assert float(offsets.gain.min()) == 1.0
    weight, bias = offset_weights(patches, offsets)
    offset = offset_inputs(patches.inputs, patches, offsets)
    before, after = (
        (inputs @ weights.transpose(1, 2)).permute(1, 0, 2).flatten(1) + constant
        for inputs, weights, constant in ((patches.inputs, patches.weight, patches.bias), (offset, weight, bias))
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    # Channels are more alike than before.
    before, after = (
        each.unflatten(2, (-1, patches.kernel_size)).abs().amax((1, 3)) for each in (patches.inputs, offset)
    )
    assert float(after.max() / after.min()) < float(before.max() / before.min())


def test_all_kinds_of_layers_have_gains_and_only_padded_ones_no_shift(network, images):
    model, _ = calibrate(network, images, all_layers(8))
    assert all(model.layers[name].gain is not None for name in ("net.deep", "net.mix", "net.rows"))
    shifted = {name for name, layer in model.layers.items() if layer.shift is not None}
    assert "net.rows" in shifted
    assert shifted <= {"net.mix", "net.rows"}


@pytest.mark.parametrize("ingredient", OFF)
@pytest.mark.parametrize("bits", [4, 8])
def test_each_ingredient_alone_comes_no_further_from_float(network, images, ingredient, bits):
    plain, _ = calibrate(network, images, all_layers(bits), CalibrationSettings(exact_sums=False, **OFF))
    settings = CalibrationSettings(exact_sums=False, **{**OFF, ingredient: True})
    model, _ = calibrate(network, images, all_layers(bits), settings)
    assert psnr_to_float(model, network) > psnr_to_float(plain, network) - 0.3


class Rarely(nn.Module):
    """The second feature is tiny, but for pixels of pure red, where it is as large as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1)
        self.deep = nn.Conv2d(2, 3 * 4, 3, padding=1)
        self.last = nn.Conv2d(3 * 4, 3 * 4, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[0.3, 0.3, 0.3], [1.0, -0.5, -0.5]]).reshape(2, 3, 1, 1))
            self.first.bias.copy_(torch.tensor([0.0, -200.0]))

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(self.deep(nn.functional.leaky_relu(self.first(x), 1e-3))), 2)


def test_gains_do_not_push_what_is_rare_beyond_the_grid():
    torch.manual_seed(0)
    network = foreign_network(Rarely(), input_range=255.0)
    images = [torch.full((1, 3, 48, 48), 100.0) + 20 * torch.randn(1, 3, 48, 48) for _ in range(4)]
    images[0][..., 5, 6] = torch.tensor([255.0, 0, 0])
    policy = all_layers(8)
    # Scales with short mantissas may cut off a little of any range.
    layer = calibrate(network, images, policy, CalibrationSettings(exact_sums=False))[0].layers["net.deep"]
    assert layer.gain is not None
    assert 55 * float(layer.gain.flatten()[1]) <= layer.grid.upper


@pytest.mark.parametrize(("bits", "gained_db"), [(4, 6.0), (8, 4.0)])
def test_unequal_channels_are_where_it_pays(network, images, bits, gained_db):
    plain, _ = calibrate(network, images, all_layers(bits), CalibrationSettings(exact_sums=False, **OFF))
    model, _ = calibrate(network, images, all_layers(bits), CalibrationSettings(exact_sums=False))
    assert psnr_to_float(model, network) > psnr_to_float(plain, network) + gained_db
    again, _ = calibrate(network, images, all_layers(bits), CalibrationSettings(exact_sums=False))
    assert all(torch.equal(again.layers[name].codes, layer.codes) for name, layer in model.layers.items())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("runtime", ["onnx_reference", "onnxruntime", "onnxruntime_unfused", "openvino"])
def test_gains_are_lowered_exactly(network, images, bits, runtime):
    model, _ = calibrate(network, images, all_layers(bits))
    image = random_images(24, 32, seed=9)
    layers = compare_layers(model, lowered(model), OPENERS[runtime], [image])
    # Each layer is given the reference's input: what differs is rounding at ties.
    assert all(layer.is_clean for layer in layers if layer.name != OUTPUT)
    with OPENERS[runtime](lowered(model).SerializeToString()) as opened:
        assert np.abs(opened.upscale(image) - model(torch.from_numpy(image)).numpy()).mean() < 1.0
