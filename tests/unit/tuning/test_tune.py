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


def test_without_a_goal_layers_are_fitted_together_at_once(network):
    calibrations = Calibrations(network)
    tune(network, NARROW, calibrations, HeldBack(network, map(Sample, images(5, 2))))
    assert [in_sequence for _, in_sequence in calibrations.calls] == [True]


def test_what_is_trained_are_the_widths_that_were_chosen(network):
    held_back = HeldBack(network, map(Sample, images(5, 2)))
    goal = Goal(min_psnr_db=held_back.measure(Calibrations(network)(NARROW, True)[0]).psnr_db + 1)
    calibrated = tune(network, NARROW, Calibrations(network), held_back, goal=goal)
    budget = Budget(steps=120)
    trained = tune(network, NARROW, Calibrations(network), held_back, goal=goal, budget=budget, images=images(0, 3))
    assert trained.mixed is not None
    assert calibrated.mixed is not None
    assert trained.mixed.widened == calibrated.mixed.widened
    assert trained.cost.psnr_db > calibrated.cost.psnr_db
    assert trained.mixed.after == trained.cost == held_back.measure(trained.model)


def test_training_that_takes_a_goal_away_is_not_kept(network, monkeypatch):
    """Nearer to float on all images together, and yet a larger loss: what was promised comes first."""
    held_back = HeldBack(network, map(Sample, images(5, 2)))
    goal, budget = Goal(min_psnr_db=1.0), Budget(steps=20)
    plain = tune(network, NARROW, Calibrations(network), held_back, goal=goal)
    best_db = plain.cost.psnr_db
    monkeypatch.setattr(Goal, "misses", lambda _, cost: ["it loses 1 dB"] if cost.psnr_db > best_db else [])
    said: list[str] = []
    tuned = tune(
        network,
        NARROW,
        Calibrations(network),
        held_back,
        goal=goal,
        budget=budget,
        images=images(0, 3),
        say=said.append,
    )
    assert tuned.cost == plain.cost
    assert any(line.endswith("not better, so the calibrated model is kept") for line in said)
