"""Weights are fitted to quantized and to float inputs, and the closest model is taken."""

import dataclasses

import torch

from odm_deploy.quantization import post_training, reconstruction, weight_fitting
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.reconstruction import fit_weights
from odm_deploy.quantization.sequential import fit_in_sequence
from odm_deploy.quantization.weight_fitting import fit_all_weights
from tests.factories import random_images, tiny_network

PARTS = [torch.from_numpy(random_images(24, 24, seed=seed)) for seed in range(2)]
NEAREST = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)


@torch.no_grad()
def test_of_both_fits_the_closer_one_is_taken():
    network = tiny_network()
    model, _ = calibrate(network, PARTS, QuantizationPolicy.parse("integer", "4"), NEAREST)
    network.align_output()
    signals = {name: signal.grid for name, signal in model.signals.items()}
    layers = {name: FrozenLayer(layer.weight_codes, layer.grid, layer.bias) for name, layer in model.layers.items()}

    def distance(candidate):
        found = freeze(network, candidate, signals=signals)
        return sum(float((found(part) - network(part)).square().mean()) for part in PARTS)

    ways = [
        fit_in_sequence(network, PARTS, layers, lambda layer, patches, _: fit_weights(layer, patches, patches.inputs),
                        signals),
        fit_in_sequence(network, PARTS, layers, fit_weights, signals),
    ]  # fmt: skip
    chosen = fit_all_weights(network, PARTS, PARTS, layers, signals, None)
    distances = [distance(way) for way in ways]
    assert distances[0] != distances[1]
    assert distance(chosen) == min(distances) < distance(layers)


def test_both_fits_of_a_layer_share_what_the_float_layer_makes(monkeypatch):
    network, computed = tiny_network(), []
    float_outputs = weight_fitting.float_outputs
    counted = lambda layer, patches: computed.append(patches.name) or float_outputs(layer, patches)  # noqa: E731
    for module in (weight_fitting, reconstruction):
        monkeypatch.setattr(module, "float_outputs", counted)
    model, _ = calibrate(network, PARTS, QuantizationPolicy.parse("paper", "4"))
    assert sorted(computed) == sorted(model.layers)


@torch.no_grad()
def test_a_fit_that_makes_it_worse_is_not_taken(monkeypatch):
    network = tiny_network()
    model, _ = calibrate(network, PARTS, QuantizationPolicy.parse("exact", "4"), NEAREST)
    network.make_exact()
    layers = {name: FrozenLayer(layer.weight_codes, layer.grid, layer.bias) for name, layer in model.layers.items()}

    def spoilt(layer, *_, **__):
        return dataclasses.replace(layer, bias=layer.bias + 50)

    monkeypatch.setattr(weight_fitting, "fit_weights", spoilt)
    chosen = fit_all_weights(network, PARTS, PARTS, layers, {}, None)
    assert all(chosen[name] is layer for name, layer in layers.items())


@torch.no_grad()
def test_fits_are_chosen_by_pixels_that_none_was_fitted_to(monkeypatch):
    network = tiny_network()
    model, _ = calibrate(network, PARTS, QuantizationPolicy.parse("paper", "4"), NEAREST)
    layers = {name: FrozenLayer(layer.weight_codes, layer.grid, layer.bias) for name, layer in model.layers.items()}
    unseen = [torch.from_numpy(random_images(24, 24, seed=seed)) for seed in range(2, 4)]
    distances, judged_on = [], []

    def judged(network, candidate, **rest):
        found = freeze(network, candidate, **rest)
        distances.append([float((found(part) - network(part)).square().sum()) for part in unseen])
        found.network.register_forward_pre_hook(lambda _, inputs: judged_on.append(inputs[0]))
        return found

    monkeypatch.setattr(weight_fitting, "freeze", judged)
    chosen = fit_all_weights(network, PARTS, unseen, layers, {}, None)
    found = freeze(network, chosen)
    assert [float((found(part) - network(part)).square().sum()) for part in unseen] == min(distances, key=sum)
    assert len(distances) == 3
    assert [any(image is part for part in unseen) for image in judged_on] == [True] * 6


def test_the_parts_to_choose_by_are_others_than_those_to_fit_to():
    image = torch.arange(3.0 * 64 * 64).reshape(1, 3, 64, 64)
    _, parts, unseen = post_training._with_parts(iter([image] * 5), 21)
    assert [part.shape for part in unseen] == [part.shape for part in parts] == [(1, 3, 21, 21)] * 5
    assert not set(torch.cat(parts).flatten().tolist()) & set(torch.cat(unseen).flatten().tolist())
    assert len({part[0, 0, 0, 0].item() for part in unseen}) == 4
    # A small image has no others.
    _, parts, unseen = post_training._with_parts(iter([image] * 2), 64)
    assert all(torch.equal(*pair) for pair in zip(parts, unseen, strict=True))
