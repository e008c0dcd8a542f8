"""Small networks of the kinds that people run in real time: from weights to a proven bundle, with an engine."""

from __future__ import annotations

import importlib

import pytest
import torch

from odm_deploy.bundle import Bundle
from odm_deploy.machine.builders import can_build, find_builder
from tests.command_line import run_cli
from tests.inputs import image_folder
from tests.spandrel_here import require_spandrel

RTX = find_builder("tensorrt_rtx")
# Module, class, a small variant. Those of spandrel are told by their weights, the others have to be named.
SPANDREL = "spandrel.architectures"
NETWORKS = {
    "Compact": (f"{SPANDREL}.Compact", "Compact", {"num_feat": 16, "num_conv": 3, "upscale": 2}),
    "SPAN": (f"{SPANDREL}.SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}),
    "SAFMN": (f"{SPANDREL}.SAFMN", "SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RRDB": (f"{SPANDREL}.ESRGAN", "ESRGAN", {"num_filters": 16, "num_blocks": 1, "scale": 4}),
    "RLFN": ("tests.public_networks", "RLFN", {"features": 16, "blocks": 1, "scale": 2}),
    "RFDN": ("tests.public_networks", "RFDN", {"features": 16, "blocks": 2, "scale": 2}),
    "CARN": ("tests.public_networks", "CARN", {"features": 16, "groups": 4, "scale": 2}),
    "IMDN": ("tests.public_networks", "IMDN", {"features": 16, "blocks": 2, "scale": 2}),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Network inputs."""
    return image_folder(tmp_path_factory.mktemp("images"), 2, 48, 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_from_weights_to_a_proven_bundle(name, images, tmp_path):
    module, kind, parameters = NETWORKS[name]
    named: list[str] = []
    if module.startswith("spandrel"):
        require_spandrel()
    else:
        named = ["--network", f"{module}:{kind}", "--set", "input_range=255"]
        named += [part for key, value in parameters.items() for part in ("--set", f"{key}={value}")]
    torch.manual_seed(1)
    network = getattr(importlib.import_module(module), kind)(**parameters)
    weights, bundle = tmp_path / "weights.pth", tmp_path / "bundle"
    torch.save(network.state_dict(), weights)
    engine = ["--shapes", "1x3x48x64"] if can_build(RTX) else ["--no-engine"]
    common = ("quantize", weights, "--images", images, "--lr", "-o", tmp_path / "model.pt", "--export", bundle)
    made = run_cli(*common, *engine, *named, "--set", "input_range=255", "--json")
    assert made.code == 0, made.stderr
    # How near random weights come at 8 bits says nothing of trained ones; that there are as many layers, does.
    assert len(made.document["sensitivity"]) == len(made.document["layers"]) > 1
    manifest = Bundle.open(bundle).manifest
    assert manifest is not None
    assert (manifest.engine is not None) == can_build(RTX)
    trust = ["--trust", f"{module}:{kind}"] if named else []
    proof = run_cli("verify", bundle, "--images", images, "--runtime", "onnxruntime", "--max-images", 1, *trust)
    assert proof.code == 0, proof.stderr
    assert "computes the reference" in proof.stdout
