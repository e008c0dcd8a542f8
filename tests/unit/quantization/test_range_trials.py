"""Ranges judged by pictures, and what is done about colours that they tint."""

import math

import pytest
import torch

from odm_deploy.quantization import range_fitting
from odm_deploy.quantization.colour_areas import colour_area
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.quantization.range_fitting import FittedRanges
from odm_deploy.quantization.range_trials import COLOURS, RangeTrials
from tests.factories import random_images, tiny_network


@pytest.fixture(scope="module")
def network():
    """An EDSR whose body does more than add a little."""
    network = tiny_network()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("body") and name.endswith("weight"):
                parameter.mul_(3)
    return network


@pytest.fixture(scope="module")
def photographs():
    """Six images with a tenth of the contrasts there are."""
    return [100 + 0.1 * torch.from_numpy(random_images(48, 48, seed=seed)) for seed in range(6)]


def worst_tint(network, model) -> float:
    """By how many of 255 the middle of an area of one colour is off."""
    found = []
    for colour in COLOURS:
        area = colour_area(colour, 48, 48)
        with torch.no_grad():
            off = model(area).clamp(0, 255) - network(area).clamp(0, 255)
        found.append(float(off[..., 24:72, 24:72].mean((2, 3)).abs().max()))
    return max(found)


def test_colours_that_no_image_shows_are_not_tinted(network, photographs, monkeypatch):
    policy = QuantizationPolicy.parse("paper", "8")
    assert worst_tint(network, calibrate(network, photographs, policy)[0]) < 5
    monkeypatch.setattr(range_fitting, "TINT", math.inf)
    assert worst_tint(network, calibrate(network, photographs, policy)[0]) > 30


EVERY_COLOUR = tuple(range(len(COLOURS)))


class Tinting:
    """Two layers; the second one tints a colour once the first has room for another."""

    def image(self, colour):
        return colour

    def tints(self, layers, colours=EVERY_COLOUR, only=None):
        room = {0: {3}, 1: {3, 5}}
        found = dict.fromkeys(EVERY_COLOUR, 0.0)
        for layer, needs in room.items():
            if only not in (None, layer):
                continue
            missing = needs - layers[layer]
            if 3 in missing:
                found[3] += 40.0
            elif layer == 1 and 5 in missing:
                found[5] += 9.0
        return {colour: found[colour] for colour in colours}


def test_a_layer_that_gets_room_for_one_colour_more_keeps_what_it_has():
    shown = []

    def fit(colours, layers):
        shown.append((list(colours), list(layers)))
        return FittedRanges({layer: set(colours) for layer in layers}, {})

    start = FittedRanges({0: set(), 1: set()}, {})
    fitted = range_fitting.without_tint(start, {0: "", 1: ""}, Tinting(), fit, list)
    assert shown == [([3], [0, 1]), ([3, 5], [1])]
    assert fitted.layers == {0: {3}, 1: {3, 5}}


def test_what_does_not_help_changes_nothing(network, photographs, monkeypatch):
    def grids():
        model = calibrate(network, photographs, QuantizationPolicy.parse("paper", "8"))[0]
        return {name: layer.grid for name, layer in model.layers.items()}

    helped = grids()
    monkeypatch.setattr(range_fitting, "HELPS", 0.0)
    unchanged = grids()
    monkeypatch.setattr(range_fitting, "TINT", math.inf)
    assert grids() == unchanged != helped


def test_only_inputs_are_rounded_and_only_of_the_layers_that_are_asked_for(network, photographs):
    layers = _frozen(network, photographs)
    trials = RangeTrials(network, photographs)
    all_of_them = trials.tints(layers)
    assert all_of_them.keys() == set(range(len(COLOURS)))
    alone = {name: trials.tints(layers, [0, 7], only=name) for name in layers}
    assert all(tints.keys() == {0, 7} for tints in alone.values())
    assert len({tints[7] for tints in alone.values()}) > 1
    assert trials.photographs_db(layers) > 40
    assert trials.photographs_db({}) == math.inf
    # Faint photographs say nothing of lines.
    assert trials.lettering_db(layers) < trials.photographs_db(layers) - 10


def _frozen(network, photographs):
    model = calibrate(network, photographs, QuantizationPolicy.parse("paper", "8"))[0]
    return {
        name: FrozenLayer(layer.weight_codes, layer.grid, layer.bias, layer.offsets)
        for name, layer in model.layers.items()
    }
