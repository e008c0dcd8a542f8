"""Layers are mixed that were fitted each for itself; once widths are chosen, they are fitted behind each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.tuning.finetuning import Budget
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.tune import tune
from tests.factories import random_images, tiny_network

NARROW = QuantizationPolicy(LayerBits(3, 3))


def images(first, count):
    return [torch.from_numpy(random_images(56, 56, seed=seed)) for seed in range(first, first + count)]


class Calibrations:
    """Real ones, and the calls that were made."""

    def __init__(self, network):
        self.network, self.calls = network, []

    def __call__(self, policy, in_sequence):
        self.calls.append((policy, in_sequence))
        settings = dataclasses.replace(CalibrationSettings(), in_sequence=in_sequence)
        return calibrate(self.network, images(0, 3), policy, settings)


@pytest.fixture
def network():
    return tiny_network()


def test_widths_are_chosen_among_layers_fitted_alone_and_then_fitted_together(network):
    calibrations = Calibrations(network)
    held_back = HeldBack(network, map(Sample, images(5, 2)))
    plain = held_back.measure(calibrations(NARROW, True)[0])
    calibrations.calls.clear()
    tuned = tune(network, NARROW, calibrations, held_back, goal=Goal(min_psnr_db=plain.psnr_db + 2))
    assert tuned.mixed is not None
    assert tuned.mixed.widened
    assert tuned.cost.psnr_db >= plain.psnr_db + 2
    (first, alone), (wide, too), (chosen, behind) = calibrations.calls
    assert (alone, too, behind) == (False, False, True)
    assert first == NARROW
    assert wide.body == LayerBits(8, 8)
    assert chosen.overrides == dict.fromkeys(tuned.mixed.widened, LayerBits(8, 8))
    widths = {name: layer.grid.bits for name, layer in tuned.model.layers.items()}
    assert widths == {name: 8 if name in tuned.mixed.widened else 3 for name in widths}
    assert {each.name: each.bits for each in tuned.summaries} == widths


def test_without_a_goal_and_with_training_layers_are_fitted_together_at_once(network):
    calibrations = Calibrations(network)
    held_back = HeldBack(network, map(Sample, images(5, 2)))
    tune(network, NARROW, calibrations, held_back)
    tune(
        network,
        NARROW,
        calibrations,
        held_back,
        goal=Goal(min_psnr_db=1.0),
        budget=Budget(steps=1),
        images=images(0, 3),
    )
    assert [in_sequence for _, in_sequence in calibrations.calls] == [True, True]
