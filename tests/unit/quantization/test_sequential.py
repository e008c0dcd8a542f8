"""Layers are fitted one after the other on what really arrives, also where they run twice or images differ in size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.sequential import fit_in_sequence
from tests.factories import random_images

NEAREST = CalibrationSettings(adaptive_rounding=False, correct_bias=False, exact_sums=False)


class OutOfOrder(nn.Module):
    """Two layers that run in another order than they are named, the first of them twice."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(8, 3, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.early = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = torch.relu(self.early(x))
        return self.late(torch.relu(self.twice(torch.relu(self.twice(x)))))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return foreign_network(OutOfOrder().eval(), builder="tests:OutOfOrder", arguments={}, input_range=1.0)


@pytest.fixture(scope="module")
def layers(network):
    policy = QuantizationPolicy(*[LayerBits(3, 3)] * 4)
    model, _ = calibrate(network, [torch.from_numpy(random_images(24, 24, seed=1))], policy, NEAREST)
    return {name: dataclasses.replace(_frozen(layer)) for name, layer in model.layers.items()}


def _frozen(layer):
    from odm_deploy.quantization.layers import FrozenLayer

    return FrozenLayer(layer.weight_codes, layer.grid, layer.bias, layer.offsets)


def test_layers_come_in_the_order_they_run_with_what_the_quantized_network_hands_on(network, layers):
    seen = []

    def fit(layer, patches, arrived):
        seen.append((patches.name, torch.equal(arrived, patches.inputs)))
        assert arrived.shape == patches.inputs.shape
        # A bias of its own: what comes behind must see it.
        return dataclasses.replace(layer, bias=layer.bias + 100.0) if patches.name == "net.early" else layer

    images = [torch.from_numpy(random_images(24, 24, seed=seed)) for seed in range(2)]
    fitted = fit_in_sequence(network, images, layers, fit)
    # The first one's input is the image; the one that runs twice is fitted on the float network's patches.
    assert seen == [("net.early", True), ("net.twice", True), ("net.late", False)]
    assert list(fitted) == list(layers)


def test_fitted_layers_are_what_the_next_one_is_fitted_on(network, layers):
    late = {}

    def fit_with(shift):
        def fit(layer, patches, arrived):
            if patches.name == "net.late":
                late[shift] = arrived
            return dataclasses.replace(layer, bias=layer.bias + shift) if patches.name == "net.early" else layer

        return fit

    images = [torch.from_numpy(random_images(24, 24, seed=3))]
    for shift in (0.0, 0.5):
        fit_in_sequence(network, images, layers, fit_with(shift))
    assert not torch.equal(late[0.0], late[0.5])


def test_images_of_different_sizes_are_one_batch(network, layers):
    rows = []

    def fit(layer, patches, arrived):
        rows.append(arrived.shape[1])
        return layer

    sizes = [(16, 24), (24, 16), (20, 20), (8, 8)]
    images = [torch.from_numpy(random_images(height, width, seed=0)) for height, width in sizes]
    fit_in_sequence(network, images, layers, fit)
    # The median is 20 each way, and one image has both.
    assert rows == [20 * 20, 2 * 20 * 20, 20 * 20]


def test_it_comes_closer_to_float_than_fitting_each_layer_alone(network, layers):
    from odm_deploy.quantization.model import freeze
    from odm_deploy.quantization.patches import layer_patches
    from odm_deploy.quantization.reconstruction import fit_weights

    images = [torch.from_numpy(random_images(32, 32, seed=seed)) for seed in range(8)]
    alone = {
        patches.name: fit_weights(layers[patches.name], patches, patches.inputs)
        for patches in layer_patches(network, images, list(layers))
    }
    behind = fit_in_sequence(network, images, layers, fit_weights)
    new = torch.from_numpy(random_images(48, 48, seed=50))
    with torch.no_grad():
        errors = [float((freeze(network, each)(new) - network(new)).square().mean()) for each in (alone, behind)]
    assert errors[1] < errors[0]
