"""Refining power-of-two grids: the image gets better, never worse, and grids stay what an exact model needs."""

from __future__ import annotations

import copy

import pytest
import torch

from odm_deploy.grid import Grid
from odm_deploy.quantization.exact.refine import refine_grids
from odm_deploy.quantization.model import QuantizedModel
from tests.exact_models import calibrated_exact, small_network
from tests.factories import random_images

IMAGES = [torch.from_numpy(random_images(14, 16, seed=seed)) for seed in range(2)]


def prepared():
    network = small_network("edsr")
    network.make_exact()
    model = calibrated_exact("edsr", 4)
    return network, QuantizedModel(copy.deepcopy(model.network))


def error(model, network) -> float:
    with torch.no_grad():
        return sum(float((model(image) - network(image)).square().sum()) for image in IMAGES)


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_grid_that_is_far_off_comes_back(factor):
    network, model = prepared()
    layer = model.layers["body.0.body.2"]
    layer.grid = Grid(layer.grid.scale * factor, layer.grid.zero_point, 4)
    before, scale = error(model, network), layer.grid.scale
    assert refine_grids(model, network, IMAGES) >= 1
    assert error(model, network) < before
    assert (layer.grid.scale < scale) is (factor > 1)


def test_grids_stay_powers_of_two_and_8_bits_are_left_alone():
    network, model = prepared()
    before = {name: layer.grid for name, layer in model.layers.items()}
    refine_grids(model, network, IMAGES)
    for name, layer in model.layers.items():
        assert layer.grid.is_power_of_two
        assert layer.grid.bits == before[name].bits
        assert layer.grid == before[name] or layer.grid.bits < 8
        assert layer.grid.zero_point == 0 or before[name].zero_point > 0


def test_a_second_pass_makes_nothing_worse():
    network, model = prepared()
    errors = [error(model, network)]
    for _ in range(2):
        refine_grids(model, network, IMAGES)
        errors.append(error(model, network))
    assert errors == sorted(errors, reverse=True)


def test_progress_covers_the_layers_that_are_refined():
    network, model = prepared()
    told = []

    def track(layers, total):
        for done, layer in enumerate(layers):
            told.append((done + 1, total, layer.grid.bits))
            yield layer

    refine_grids(model, network, IMAGES, track)
    count = sum(layer.grid.bits < 8 for layer in model.layers.values())
    assert told == [(index + 1, count, 4) for index in range(count)]
