"""`odm-deploy export`: whole bundles or none, the keys tools rely on, real engines that run as int8."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.checkpoint import save_model
from odm_deploy.files import file_sha256
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.quantization.policy import QuantizationPolicy
from tests.command_line import run_cli
from tests.factories import lowered, model_of_all_kinds, random_images, tiny_model

RTX = find_builder("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


ENGINE_SHAPES = "1x3x12x16:1x3x24x32:1x3x48x64"


def names(folder: Path) -> list[str]:
    """Names of everything in a folder."""
    return sorted(path.name for path in folder.iterdir())


@needs_rtx
def test_bundle_with_an_engine(tiny_checkpoint, tmp_path):
    folder = tmp_path / "bundle"
    outcome = run_cli(
        "export", tiny_checkpoint, "-o", folder, "--builder", "tensorrt_rtx", "--shapes", ENGINE_SHAPES, "--json"
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.document == {
        "bundle": str(folder),
        "onnx": str(folder / "model.onnx"),
        "plan": str(folder / "engine.plan"),
        "manifest": str(folder / "manifest.json"),
        "triton": [],
    }
    assert names(folder) == ["engine.plan", "manifest.json", "model.cpu.onnx", "model.onnx"]
    assert (folder / "engine.plan").stat().st_size > 10_000
    manifest = read_manifest(folder)
    assert manifest.checkpoint["sha256"] == file_sha256(tiny_checkpoint)
    assert manifest.onnx["sha256"] == file_sha256(folder / "model.onnx")
    assert {"opset": 20, "precision": "fp32", "io": "float32", "layout": "nchw"}.items() <= manifest.onnx.items()
    assert (manifest.scale, manifest.receptive_radius_px) == (2, 8)
    model = tiny_model(8)
    assert manifest.layers == {
        name: {"grid": layer.grid.to_dict(), "weight_bits": layer.weight_bits} for name, layer in model.layers.items()
    }
    assert manifest.engine["flavour"] == "tensorrt_rtx"
    assert manifest.engine["profile"] == ENGINE_SHAPES
    assert {row["precision"] for row in manifest.engine["layers"]} >= {"int8", "fp32"}
    inspected = run_cli("inspect", folder, "--json")
    assert inspected.code == 0, inspected.stderr
    assert inspected.document["int8_layers"] == inspected.document["quantized_layers"] == len(model.layers)


@needs_rtx
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"precision": "fp16", "io": "uint8", "layout": "nhwc"},
        {"io": "uint8", "layout": "nhwc", "order": "bgr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [2, 8])
def test_all_quantized_layers_of_real_engines_run_as_int8(bits, options, tmp_path):
    assert_all_int8(lowered(tiny_model(bits), **options), tmp_path)


@needs_rtx
@pytest.mark.parametrize("power_of_two", [False, True])
def test_every_kind_of_grid_and_weight_runs_as_int8(power_of_two, tmp_path):
    assert_all_int8(lowered(model_of_all_kinds(power_of_two=power_of_two)), tmp_path)


@needs_rtx
@pytest.mark.parametrize("profile", ["integer", "engine"])
@pytest.mark.parametrize("clip", [nn.ReLU6(), nn.Hardtanh(-3.1, 4.7)], ids=str)
def test_clips_for_openvino_cost_engines_no_int8(clip, profile, tmp_path):
    torch.manual_seed(6)
    convolutions = [nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in ((3, 8), (8, 8), (8, 12))]
    network = nn.Sequential(*convolutions[:2], clip, convolutions[2], nn.PixelShuffle(2))
    images = [torch.from_numpy(random_images(24, 32))]
    proto = lowered(quantize(network, QuantizationPolicy.parse(profile, "8"), images))
    assert "Clip" not in {node.op_type for node in proto.graph.node}
    assert_all_int8(proto, tmp_path)


def assert_all_int8(proto: onnx.ModelProto, folder: Path) -> None:
    onnx.save(proto, folder / "model.onnx")
    shapes = parse_shapes(ENGINE_SHAPES)
    report = build_engine(folder / "model.onnx", folder / "engine.plan", BuildOptions(builder=RTX.name, shapes=shapes))
    covered = coverage(proto, report.layers, shapes)
    assert covered.quantized_layers > 0
    assert {layer.name: layer.reason for layer in covered.fallbacks} == {}


@needs_rtx
@pytest.mark.parametrize(("bits", "padded"), [(8, 5), (4, 0)])
def test_engines_that_pad_by_kernels_of_their_own_say_so(bits, padded, tmp_path):
    save_model(tiny_model(bits), tmp_path / "model.pt")
    outcome = run_cli("export", tmp_path / "model.pt", "--builder", "tensorrt_rtx", "--shapes", ENGINE_SHAPES)
    assert outcome.code == 0, outcome.stderr
    notes = [line for line in outcome.stderr.splitlines() if "need kernels of their own" in line]
    assert [line.split()[1] for line in notes] == ([str(padded)] if padded else [])


def test_edges_and_precision_are_recorded_and_written(tiny_checkpoint, tmp_path):
    folder = tmp_path / "bundle"
    options = ("--no-engine", "--precision", "fp16", "--io", "uint8", "--layout", "nhwc")
    outcome = run_cli("export", tiny_checkpoint, "-o", folder, *options, "--json")
    assert outcome.document["plan"] is None
    assert {"precision": "fp16", "io": "uint8", "layout": "nhwc"}.items() <= read_manifest(folder).onnx.items()
    image = onnx.load(folder / "model.onnx").graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert image.shape.dim[3].dim_value == 3


def test_default_folder_lies_beside_the_checkpoint(tmp_path):
    save_model(tiny_model(4), tmp_path / "edsr.pt")
    outcome = run_cli("export", tmp_path / "edsr.pt", "--no-engine")
    assert outcome.code == 0
    assert outcome.stdout == ""
    assert "manifest.json, model.cpu.onnx, model.onnx" in outcome.stderr
    assert (tmp_path / "edsr" / "model.onnx").is_file()


def test_equal_exports_are_equal_and_replace_each_other(tiny_bundle, tiny_checkpoint, tmp_path):
    folder = tmp_path / "bundle"
    for _ in range(2):
        assert run_cli("export", tiny_checkpoint, "-o", folder, "--no-engine").code == 0
    assert (folder / "model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes()
    assert names(tmp_path) == ["bundle"]


def test_folder_of_something_else_is_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"sun")
    outcome = run_cli("export", tiny_checkpoint, "-o", tmp_path / "photos", "--no-engine")
    assert outcome.code == 1
    assert "it exists and is not a bundle" in outcome.stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


@needs_rtx
def test_build_that_fails_leaves_nothing(tiny_checkpoint, tmp_path):
    outcome = run_cli("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--timeout", "0.01")
    assert outcome.code == 1
    assert "0.01 s" in outcome.stderr
    assert names(tmp_path) == []


@needs_rtx
def test_build_that_fails_keeps_the_old_bundle(tiny_checkpoint, tmp_path):
    folder = tmp_path / "bundle"
    assert run_cli("export", tiny_checkpoint, "-o", folder, "--no-engine").code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_cli("export", tiny_checkpoint, "-o", folder, "--timeout", "0.01").code == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process the POSIX way")
def test_killed_export_leaves_no_bundle(tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "odm_deploy", "export", str(tiny_checkpoint), "-o", str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        # The export is under way once its temporary folder lies beside where the bundle will be.
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait(timeout=20)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".bundle.")]
    assert not (tmp_path / "bundle").exists()
    # What the dead process left behind goes with the next export.
    assert run_cli("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--no-engine").code == 0
    assert names(tmp_path) == ["bundle"]
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["engine"] is None


def test_triton_repository_is_written_beside_the_bundle(tiny_checkpoint, tmp_path):
    options = ("--io", "uint8", "--layout", "nhwc", "--no-engine", "--shapes", "tile", "--triton", tmp_path / "models")
    outcome = run_cli("export", tiny_checkpoint, "-o", tmp_path / "sr", *options, "--json")
    assert outcome.document["triton"] == [str(tmp_path / "models" / "sr_onnx")]
    assert "no sr_tensorrt: the bundle has no engine.plan" in outcome.stderr
    served = tmp_path / "models" / "sr_onnx" / "1" / "model.onnx"
    assert served.read_bytes() == (tmp_path / "sr" / "model.onnx").read_bytes()
