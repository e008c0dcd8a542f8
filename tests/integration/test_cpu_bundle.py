"""Bundles with a graph for CPUs beside TensorRT's: who takes which, and that both are proven."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import CPU_ONNX_FILE, ONNX_FILE
from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.writing import write_image
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.command_line import run_cli
from tests.exact_models import calibrated_exact, small_network
from tests.factories import random_images


def exported(folder, model, *options):
    save_model(model, folder / "model.pt")
    outcome = run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine", *options)
    assert outcome.code == 0, outcome.stderr
    return folder / "bundle"


@pytest.fixture(scope="module")
def integer_bundle(tmp_path_factory):
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    policy = QuantizationPolicy.parse("integer", "8", head="8")
    return exported(
        tmp_path_factory.mktemp("integer"), calibrate(small_network("edsr"), images, policy)[0], "--target", "auto"
    )


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("exact"), calibrated_exact("edsr"), "--target", "auto")


@pytest.fixture
def photo(tmp_path):
    write_image(tmp_path / "photo.png", Image(np.uint8(random_images(40, 36)[0].transpose(1, 2, 0))))
    return tmp_path / "photo.png"


def test_the_manifest_says_which_runtimes_take_the_graph_for_cpus(integer_bundle, exact_bundle):
    for folder, runtimes in ((integer_bundle, ["openvino", "onnxruntime"]), (exact_bundle, ["openvino"])):
        bundle = Bundle.open(folder)
        assert bundle.require_manifest().cpu_onnx["runtimes"] == runtimes
        taken = {name: bundle.seen_by(name).onnx_path.name for name in ("openvino", "onnxruntime", "tensorrt")}
        files = {name: CPU_ONNX_FILE if name in runtimes else ONNX_FILE for name in taken}
        assert taken == files


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_both_graphs_are_proven_on_every_runtime(integer_bundle, photo, runtime):
    outcome = run_cli("verify", integer_bundle, "--images", photo, "--runtime", runtime, "--json")
    assert outcome.code == 0, outcome.stderr
    names = [layer["name"] for layer in outcome.document["layers"]]
    assert "body.0.body.2" in names
    # What the sum before it is rounded to already is judged once there.
    assert "body.0.body.0" not in names
    assert f"{ONNX_FILE}: body.0.body.0" in names


def test_exact_bundles_give_the_same_bytes_from_both_graphs(exact_bundle, photo):
    assert run_cli("verify", exact_bundle, "--images", photo, "--runtime", "openvino").code == 0
    assert run_cli("verify", exact_bundle, "--runtime", "openvino").code == 0
    image = np.uint8(random_images(33, 30)[0].transpose(1, 2, 0))
    results = []
    for path in (exact_bundle, exact_bundle / ONNX_FILE, exact_bundle / CPU_ONNX_FILE):
        for runtime in ("openvino", "onnxruntime"):
            with Engine.open(path, runtime) as engine:
                results.append(engine.upscale(image))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_graph_for_cpus_that_was_changed_is_noticed(exact_bundle, photo, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in exact_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / CPU_ONNX_FILE).write_bytes((folder / CPU_ONNX_FILE).read_bytes() + b"\x3a\x00")
    options = ("--against", exact_bundle.parent / "model.pt", "--no-layers")
    assert run_cli("verify", folder, "--images", photo, "--runtime", "openvino", *options).code == 3


def test_a_bundle_for_cpus_alone_has_one_graph(tmp_path):
    folder = exported(tmp_path, calibrated_exact("edsr"), "--target", "cpu")
    assert not (folder / CPU_ONNX_FILE).exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["onnx"]["target"] == "cpu"
    assert "cpu_onnx" not in manifest
