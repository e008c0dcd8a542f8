"""`odm-deploy eval`: the literature's figures of a checkpoint, a bundle and float weights on a set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odm_deploy.checkpoint import load_model
from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.proof.metrics import psnr_y, ssim_y
from odm_deploy.proof.reference import TorchReference
from tests.command_line import run_cli
from tests.factories import tiny_network


def test_figures_are_those_of_the_protocol(tiny_checkpoint, tiny_set):
    outcome = run_cli("eval", tiny_checkpoint, "--dataset", tiny_set, "--json")
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    assert (document["dataset"], document["scale"]) == (tiny_set.name, 2)
    reference = TorchReference(load_model(tiny_checkpoint))
    expected = []
    for pair in (file.load() for file in find_pairs(tiny_set, 2)):
        output = to_pixels(reference.upscale(pair.low.transpose(2, 0, 1)[None].astype(np.float32)))
        figures = {"psnr_y_db": psnr_y(output, pair.high, 2), "ssim_y": ssim_y(output, pair.high, 2)}
        expected.append({"name": pair.name, **figures})
    assert document["images"] == expected
    for key in ("psnr_y_db", "ssim_y"):
        assert document[key] == pytest.approx(np.mean([row[key] for row in expected]))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_bundle_measures_what_its_checkpoint_measures(runtime, tiny_checkpoint, tiny_bundle, tiny_set):
    reference = run_cli("eval", tiny_checkpoint, "--dataset", tiny_set, "--json").document
    outcome = run_cli("eval", tiny_bundle, "--dataset", tiny_set, "--runtime", runtime, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["psnr_y_db"] == pytest.approx(reference["psnr_y_db"], abs=0.01)


def test_a_runtime_for_what_pytorch_runs_is_refused(tiny_checkpoint, tiny_set):
    outcome = run_cli("eval", tiny_checkpoint, "--dataset", tiny_set, "--runtime", "onnxruntime")
    assert outcome.code == 2
    assert "PyTorch runs it; leave --runtime out" in outcome.stderr


def test_float_weights_of_a_named_network(tiny_set, tmp_path):
    torch.save(tiny_network().state_dict(), tmp_path / "edsr.pt")
    arguments = ("eval", tmp_path / "edsr.pt", "--network", "edsr", "--dataset", tiny_set)
    outcome = run_cli(*arguments, "--scale", 2)
    assert outcome.code == 0, outcome.stderr
    *rows, mean = outcome.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert mean.startswith(f"{tiny_set.name} x2, mean")
    # The weights say it, too.
    assert run_cli(*arguments).stdout == outcome.stdout


def test_scale_is_known_from_the_bundle_and_needed_without_one(tiny_bundle, tiny_set, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((tiny_bundle / "model.onnx").read_bytes())
    unknown = run_cli("eval", alone, "--dataset", tiny_set)
    assert unknown.code == 2
    assert "add --scale" in unknown.stderr
    assert run_cli("eval", alone, "--dataset", tiny_set, "--scale", 2, "--json").document["scale"] == 2
    wrong = run_cli("eval", tiny_bundle, "--dataset", tiny_set, "--scale", 4)
    assert wrong.code == 2
    assert "upscales by 2" in wrong.stderr
