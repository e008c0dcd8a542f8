"""Sensitivities from one pass are those that quantizing each layer alone shows."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from odm_deploy.accounting import account
from odm_deploy.errors import InputError
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.sensitivity import (
    MACS,
    PART_PX,
    WEIGHTS,
    choose_parts,
    float_inputs,
    layer_sensitivities,
    macs_shares,
)
from odm_deploy.tuning.tune import tune
from tests.factories import random_images, tiny_model, tiny_network
from tests.foreign_networks import Enlarger, seeded


def images(count=2, size=64):
    return [torch.from_numpy(random_images(size, size, seed=seed)) for seed in range(count)]


def quantized_alone(network, model, layer):
    """The float network with one layer of the model."""
    mixed = copy.deepcopy(network)
    parent, _, child = layer.rpartition(".")
    setattr(mixed.get_submodule(parent), child, model.layers[layer])
    return mixed


def test_each_figure_is_what_quantizing_the_layer_alone_costs():
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(6, 6), tail=LayerBits(6, 6)))
    found = layer_sensitivities(network, model, images(), probes=200)
    parts = HeldBack(network, [Sample(part) for part in choose_parts(images(), 8)])
    assert [each.name for each in found] == list(model.layers)
    for each in found:
        measured = parts.measure(quantized_alone(network, model, each.name)).psnr_db
        assert each.psnr_db == pytest.approx(measured, abs=1.0), each.name
    assert sum(each.macs_share for each in found) < 1.0


def test_a_coarse_layer_costs_most():
    network = tiny_network()
    policy = QuantizationPolicy(LayerBits(8, 8), overrides={"body.1.body.0": LayerBits(3, 3)})
    model, _ = calibrate(network, images(), policy)
    found = {each.name: each for each in layer_sensitivities(network, model, images())}
    worst = max(found.values(), key=lambda each: each.error)
    assert worst.name == "body.1.body.0"
    assert (worst.weight_bits, worst.activation_bits) == (3, 3)
    assert worst.error > 10 * found["body.0.body.0"].error


def test_networks_of_others_work_too_and_in_place_activations_do_no_harm():
    module = seeded()
    network = foreign_network(module)
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(6, 6)))
    before = layer_sensitivities(network, model, images(1))
    network.net.body[1].inplace = True
    assert layer_sensitivities(network, model, images(1)) == before


def test_without_float_weights_the_inputs_codes_are_judged():
    model = tiny_model(4)
    network = float_inputs(model)
    found = layer_sensitivities(network, model, images(1))
    assert all(math.isfinite(each.psnr_db) for each in found)
    # On grids that lose nothing the inputs cost nothing, whatever the weights' codes lost.
    assert isinstance(model, QuantizedModel)
    free = layer_sensitivities(network, QuantizedModel(float_inputs(model)), images(1))
    assert {each.error for each in free} == {0.0}
    # The model itself rounds as before.
    assert not torch.equal(network(images(1)[0]), model(images(1)[0]))


def test_parts_are_spread_over_all_images_and_small_images_are_taken_whole():
    many = [torch.full((1, 3, 2 * PART_PX, 3 * PART_PX), float(index)) for index in range(8)]
    parts = choose_parts(many, 8)
    assert [float(part[0, 0, 0, 0]) for part in parts] == list(range(8))
    assert {part.shape for part in parts} == {(1, 3, PART_PX, PART_PX)}
    assert [part.shape for part in choose_parts([torch.zeros(1, 3, 20, 24)], 4)] == [(1, 3, 20, 24)]
    with pytest.raises(InputError, match="there is no image"):
        choose_parts([], 4)


class WithoutGradients(Enlarger):
    """Somebody's network that switches gradients off inside."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def test_a_network_without_gradients_is_refused_in_a_line_and_still_quantized():
    network = foreign_network(WithoutGradients())
    policy = QuantizationPolicy(LayerBits(8, 8))
    calibrated = calibrate(network, images(), policy)
    with pytest.raises(InputError, match="no gradients pass through foreign"):
        layer_sensitivities(network, calibrated[0], images())
    said: list[str] = []
    tuned = tune(network, policy, lambda *_: calibrated, HeldBack(network, map(Sample, images())), say=said.append)
    assert tuned.model is calibrated[0]
    assert tuned.sensitivities == []
    assert [line.startswith("not known which layers cost most") for line in said] == [True]


class Pooled(torch.nn.Module):
    """Most of its work is on an average of a fixed size, so its share depends on the image's."""

    def __init__(self, wants_data=False):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.body = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.wants_data = wants_data

    def forward(self, x):
        if self.wants_data:
            float(x.mean())
        x = self.first(x)
        return self.last(x * self.body(torch.nn.functional.adaptive_avg_pool2d(x, 64)).mean())


def test_shares_of_work_are_those_of_the_accounting_or_said_to_be_of_the_weights():
    network = foreign_network(Pooled())
    cost = {layer.name: layer.macs for layer in account(network).layers}
    shares, share_of = macs_shares(network)
    assert share_of == MACS
    assert shares["net.body"] == cost["net.body"] / sum(cost.values())
    shares, share_of = macs_shares(foreign_network(Pooled(wants_data=True)))
    assert (share_of, shares["net.body"]) == (WEIGHTS, 584 / (224 + 584 + 219))
