"""Cross-layer equalization: the same network with evener channels, and its float form recovered from the model."""

import copy

import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.quantization.cross_layer import equalize_channels, scale_channels
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.factories import random_images, tiny_network

BITS = QuantizationPolicy.parse("integer", "8").select(tiny_network())
IMAGES = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(2)]


def uneven_network():
    """Every second channel of the stream and of one block is a tenth as wide, and read ten times as strongly."""
    network = tiny_network(features=8)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            writes = name.startswith(("head.0", "body.0.body.2", "body.1.body", "body.2"))
            if writes and not name.startswith("body.1.body.0"):
                parameter[::2] *= 0.1
            if name in ("body.0.body.0.weight", "body.1.body.0.weight", "body.2.weight", "tail.0.0.weight"):
                parameter[:, ::2] *= 10.0
    return network.eval()


def widths_at(network, layer):
    seen = []
    hook = network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(IMAGES[0])
    hook.remove()
    return seen[0].abs().amax((0, 2, 3))


@pytest.mark.parametrize("power_of_two", [True, False])
@torch.no_grad()
def test_channels_become_even_and_the_network_stays_the_same(power_of_two):
    network = uneven_network()
    scaled = copy.deepcopy(network)
    equalize_channels(scaled, IMAGES, BITS, power_of_two=power_of_two)
    before, after = widths_at(network, "body.1.body.0"), widths_at(scaled, "body.1.body.0")
    assert after.min() / after.max() > 3 * before.min() / before.max()
    found, expected = scaled(IMAGES[0]), network(IMAGES[0])
    if power_of_two:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_another_copy_is_scaled_by_the_exponents_alone():
    network = uneven_network()
    scaled, again = copy.deepcopy(network), copy.deepcopy(network)
    scale_channels(again, equalize_channels(scaled, IMAGES, BITS))
    assert all(torch.equal(a, b) for a, b in zip(scaled.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match=r"the model is not of this network: its head\.0 has 3 output channels"):
        scale_channels(again, {"head.0": [1, 2, 3]})


def test_the_float_form_of_a_model_is_what_its_layers_stand_for():
    network = uneven_network()
    model, _ = calibrate(network, IMAGES, QuantizationPolicy.parse("integer", "8"))
    form = float_form(network, model)
    changed = []
    for name, layer in model.layers.items():
        plain, matched = (each.get_submodule(name).get_parameter("weight").detach() for each in (network, form))
        steps = layer.scale.reshape(-1, 1, 1, 1)
        assert ((layer.weight - matched).abs() / steps).mean() < 1.0, name
        changed.append(not torch.equal(plain, matched))
    assert all(changed)
    image = IMAGES[0]
    with torch.no_grad():
        torch.testing.assert_close(form(image), network(image), atol=1e-3, rtol=1e-5)
        # The model's own network has that form already.
        assert torch.equal(float_form(model.network, model)(image), model.network(image))
