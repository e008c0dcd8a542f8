"""The exact profile from float weights to a verified bundle, by the commands users type."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.cli.quantize import command
from odm_deploy.engine import Engine
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.terminal import run
from tests.command_line import run_cli
from tests.inputs import edsr_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return edsr_weights(tmp_path_factory.mktemp("weights") / "edsr.pt", scale=4)


def calibrate(weights: Path, images: Path, output: Path, *more: str) -> int:
    """`python -m calibration ... --profile exact`; its exit code."""
    fixed = ["--network", "edsr", "--scale", "4", "--bits", "4", "--profile", "exact", "--crop", "32"]
    argv = ["calibration", str(weights), *fixed, "--images", str(images), "-o", str(output), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            run(command, "python -m calibration")
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def checkpoint(weights, samples) -> Path:
    path = weights.parent / "model.pt"
    assert calibrate(weights, samples / "HR", path) == 0
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint) -> Path:
    folder = checkpoint.parent / "bundle"
    outcome = run_cli("export", checkpoint, "-o", folder, "--no-engine")
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture
def low(samples) -> Path:
    return samples / "LR_bicubic" / "X4"


def verify(bundle, low, *more):
    return run_cli("verify", bundle, "--images", low, "--max-images", 2, "--json", *more)


def test_bundles_carry_the_proof_and_golden_outputs(bundle):
    manifest = read_manifest(bundle)
    assert manifest.exact is not None
    assert manifest.exact["tf32"] is False
    assert set(manifest.exact["bits"]) >= set(manifest.layers)
    assert max(manifest.exact["bits"].values()) < manifest.exact["float32_bits"] == 24
    assert len(json.loads((bundle / "golden.json").read_text())["images"]) == 3


@pytest.mark.parametrize("more", [("--runtime", "onnxruntime"), ("--runtime", "openvino"), ("--threads", "1")])
def test_runtimes_agree_in_every_bit(bundle, low, more):
    outcome = verify(bundle, low, *more)
    assert outcome.code == 0, outcome.stderr
    found = outcome.document
    assert (found["identical_pixels"], found["max_lsb"], found["exact"]) == (1.0, 0, True)
    assert found["golden"] == {"images": 3, "identical": True, "first_layer": None}
    assert {layer["flip_rate"] for layer in found["layers"]} == {0.0}
    assert found["noise_floor"]["identical_pixels"] == 1.0


def test_openvino_stays_in_float32_whatever_the_hint(bundle, low):
    outcome = verify(bundle, low, "--runtime", "openvino", "--precision", "bf16")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["identical_pixels"] == 1.0
    assert outcome.document["runtime_info"]["precision"] == "fp32"


def broken_copy(bundle, folder, initializer, change) -> Path:
    """The bundle with one initializer of its graph changed in place."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == initializer)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, folder / "model.onnx")
    return folder


def test_one_wrong_code_fails_and_its_layer_is_named(bundle, low, tmp_path):
    def one_code(codes):
        codes[5, 2, 1, 1] += 1 if codes[5, 2, 1, 1] <= 0 else -1

    outcome = verify(broken_copy(bundle, tmp_path / "broken", "body.1.body.0.codes", one_code), low)
    assert outcome.code == 3
    assert outcome.document["golden"]["first_layer"] == "body.1.body.0"
    assert outcome.document["passed"] is False
    assert "does NOT compute the reference" in outcome.stderr
    assert "body.1.body.0" in outcome.stderr


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_no_longer_runs_fails_and_its_layer_is_named(bundle, low, tmp_path, runtime):
    def one_more_channel(pads):
        pads[5] += 1

    broken = broken_copy(bundle, tmp_path / "broken", "body.2.pads", one_more_channel)
    outcome = verify(broken, low, "--runtime", runtime)
    assert outcome.code == 3
    assert "is not what was written: body.2: " in outcome.stderr.splitlines()[-1]


def test_a_report_on_a_graph_that_no_longer_runs_ends_as_verify_does(bundle, low, tmp_path):
    def one_more_channel(pads):
        pads[5] += 1

    broken = broken_copy(bundle, tmp_path / "broken", "body.2.pads", one_more_channel)
    page = tmp_path / "report.html"
    outcome = run_cli("report", broken, "--images", low, "--runtime", "onnxruntime", "--no-bench", "-o", page)
    assert outcome.code == 3
    assert "is not what was written: body.2: " in outcome.stderr.splitlines()[-1]
    assert not page.exists()


def test_bundles_of_an_older_program_are_to_be_exported_again(bundle, low, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    record = json.loads((old / "golden.json").read_text())
    (old / "golden.json").write_text(json.dumps({**record, "version": 1}))
    outcome = verify(old, low)
    assert outcome.code == 1
    assert "its version is 1, this program reads 2" in outcome.stderr
    assert "export again" in outcome.stderr


def test_tiles_come_out_as_the_whole_image(bundle, low):
    image = read_rgb(next(low.glob("*.png")))[:48, :56]
    with Engine.open(bundle, "openvino") as engine:
        assert np.array_equal(engine.upscale(image, tile=32), engine.upscale(image))


def test_half_precision_is_refused(checkpoint, tmp_path):
    outcome = run_cli("export", checkpoint, "-o", tmp_path / "half", "--precision", "fp16", "--no-engine")
    assert outcome.code == 2
    assert "its sums need float32's 24 bits, half precision has 11" in outcome.stderr
    assert not (tmp_path / "half").exists()


def test_float32_images_inside_the_graph_or_not_make_no_difference(checkpoint, bundle, low, tmp_path):
    assert (
        run_cli("export", checkpoint, "-o", tmp_path / "u8", "--io", "uint8", "--layout", "nhwc", "--no-engine").code
        == 0
    )
    outcome = verify(tmp_path / "u8", low)
    assert outcome.code == 0, outcome.stderr
    goldens = [json.loads((folder / "golden.json").read_text())["images"] for folder in (bundle, tmp_path / "u8")]
    assert goldens[0] == goldens[1]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--free"], "free grids in profile exact"),
        (["--tail", "float"], "a float layer in profile exact"),
        (["--layer", "body.0.*=float"], "a float layer in profile exact"),
    ],
)
def test_what_cannot_be_exact_is_refused_before_calibrating(weights, samples, tmp_path, capsys, more, reason):
    assert calibrate(weights, samples / "HR", tmp_path / "model.pt", *more) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
