"""What is written, and what the checkpoint lowers to later, are one graph in every network and profile."""

from __future__ import annotations

import pytest
import torch

from odm_deploy.bundle import Bundle
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.export import write_bundle
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.networks.registry import build_network
from odm_deploy.progress import silent
from odm_deploy.proof.lowered_again import check_graphs
from odm_deploy.quantization.policy import PROFILES, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from tests.factories import random_images
from tests.tool_modules import load_tool

load_tool("toolbox")
from mutations.subjects import SIZES  # noqa: E402

CASES = [*(("edsr", profile) for profile in PROFILES), *((name, "integer") for name in SIZES if name != "edsr")]


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_both_graphs_are_what_the_checkpoint_lowers_to(name, profile, tmp_path):
    torch.manual_seed(3)
    images = [torch.from_numpy(random_images(24, 20))]
    model, _ = calibrate(
        build_network(name, SIZES[name]), images, QuantizationPolicy.parse(profile, "4"), CalibrationSettings()
    )
    save_model(model, tmp_path / "model.pt")
    options = LoweringOptions(io="uint8", layout="nhwc", order="bgr")
    write_bundle(model, tmp_path / "model.pt", tmp_path / "b", options, None, silent, for_cpus=True)
    bundle = Bundle.open(tmp_path / "b")
    for found in check_graphs([bundle, bundle.seen_by("openvino")], load_model(tmp_path / "model.pt")):
        assert found.identical, found
        assert found.written_by is None
        assert found.compared > 20
