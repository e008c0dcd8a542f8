"""The profile that nobody named: `integer` where that is good enough, else `deploy`."""

import numpy as np
import pytest
import torch

from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.profile_choice import CHOICES, choose_profile
from tests.factories import random_images, tiny_network

QUICK = CalibrationSettings(output_ranges=False, adaptive_rounding=False, correct_bias=False)


class Calibrations:
    """Calibrates a tiny network, and keeps which profiles were asked for."""

    def __init__(self, bits="8", profiles=CHOICES) -> None:
        self.network = tiny_network(scale=2)
        self.policies = {name: QuantizationPolicy.parse(name, bits) for name in profiles}
        self.made = []

    def __call__(self, profile):
        self.made.append(profile)
        images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(2)]
        return calibrate(self.network, images, self.policies[profile], QUICK)

    def held_back(self, *, with_truth=True):
        low = torch.from_numpy(np.round(random_images(24, 24, seed=9)))
        with torch.no_grad():
            image = self.network(low).clamp(0, 255).round()[0].permute(1, 2, 0).numpy().astype(np.uint8)
        # Noise, as any photograph differs from what a network makes of it.
        noise = np.random.default_rng(1).integers(-20, 21, image.shape)
        truth = np.clip(image + noise, 0, 255).astype(np.uint8)
        return HeldBack(self.network, [Sample(low, truth if with_truth else None)])


def test_integer_is_taken_where_it_keeps_the_goal_and_nothing_else_is_calibrated():
    calibrations = Calibrations()
    choice = choose_profile(calibrations.policies, calibrations, calibrations.held_back(), Goal(max_drop_db=5.0))
    assert (choice.profile, calibrations.made) == ("integer", ["integer"])
    assert choice.why.startswith("it loses ")
    assert choice.calibrated[0].signals


@pytest.mark.parametrize("with_truth", [True, False])
def test_deploy_is_taken_where_integer_loses_too_much(with_truth):
    calibrations = Calibrations()
    goal = Goal(min_psnr_db=200.0)
    choice = choose_profile(calibrations.policies, calibrations, calibrations.held_back(with_truth=with_truth), goal)
    assert (choice.profile, calibrations.made) == ("deploy", ["integer", "deploy"])
    assert "with integer its output is" in choice.why
    assert not choice.calibrated[0].signals


@pytest.mark.parametrize("with_truth", [True, False])
def test_integer_is_taken_after_all_where_deploy_is_no_better_in_the_end(with_truth):
    calibrations = Calibrations()
    held_back = calibrations.held_back(with_truth=with_truth)
    choice = choose_profile(calibrations.policies, calibrations, held_back, Goal(min_psnr_db=200.0))
    [(passed_over, cost)] = choice.missed
    assert choice.faster_and_as_good(held_back.measure(choice.calibrated[0])) is None
    narrow = calibrate(calibrations.network, [held_back.lows[0]], QuantizationPolicy.parse("deploy", "2"), QUICK)[0]
    for worse in (cost, held_back.measure(narrow)):
        faster = choice.faster_and_as_good(worse)
        assert (faster.profile, faster.calibrated) == ("integer", passed_over.calibrated)
        assert faster.why.startswith("deploy is no better in the end: ")


@pytest.mark.parametrize("with_truth", [True, False])
def test_with_few_bits_it_is_what_signals_add_that_counts(with_truth):
    calibrations = Calibrations("2")
    held_back = calibrations.held_back(with_truth=with_truth)
    choice = choose_profile(calibrations.policies, calibrations, held_back)
    cost = held_back.measure(choice.calibrated[0])
    # Far from what would be asked of 8 bits.
    assert cost.psnr_db < 48.0
    assert choice.profile == "integer"
    assert choice.why.startswith("8-bit sums cost")


def test_a_profile_that_was_named_is_not_judged():
    calibrations = Calibrations(profiles=["paper"])
    choice = choose_profile(calibrations.policies, calibrations, calibrations.held_back(), Goal(min_psnr_db=200.0))
    assert (choice.profile, choice.why) == ("paper", "")
