"""Whatever profile a model was made in, every verb takes it."""

from __future__ import annotations

import json

import pytest
import torch

from odm_deploy.checkpoint import save_model
from odm_deploy.cli.quantize_options import PROFILES as NAMES
from odm_deploy.quantization.policy import PROFILES, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.tuning.profile_choice import FASTEST
from tests.command_line import run_cli
from tests.factories import random_images, tiny_network

QUICK = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)


def test_the_command_names_every_profile():
    assert list(NAMES) == [*PROFILES, FASTEST]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_verb_takes_a_model_of_every_profile(profile, tiny_set, tmp_path):
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(3)]
    save_model(
        calibrate(tiny_network(), images, QuantizationPolicy.parse(profile, "8"), QUICK)[0], tmp_path / "model.pt"
    )
    bundle, photos = tmp_path / "bundle", tiny_set / "LR_bicubic/X2"
    calls = [
        ("inspect", tmp_path / "model.pt"),
        ("export", tmp_path / "model.pt", "-o", bundle, "--no-engine"),
        ("lint", bundle / "model.onnx"),
        ("verify", bundle, "--images", photos),
        ("report", bundle, "--images", photos, "-o", tmp_path / "report.html", "--no-bench"),
        ("bench", bundle, "--size", "16x16", "--iterations", "3"),
        ("upscale", photos, tmp_path / "large", "--model", bundle),
    ]
    for verb, *arguments in calls:
        outcome = run_cli(verb, *arguments)
        assert outcome.code == 0, (verb, outcome.stderr)
    outcome = run_cli("inspect", bundle, "--runtime", "openvino", "--json")
    assert outcome.code in (0, 3), outcome.stderr
    assert json.loads(outcome.stdout)
