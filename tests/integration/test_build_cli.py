"""`odm-deploy build`: engines for bundles from elsewhere, on a machine that only runs bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import InputError
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.tensorrt.rtx_engine import TensorRtRtxEngine
from tests.command_line import run_cli
from tests.exact_models import calibrated_exact
from tests.simulated_gpu import H100, RTX2080, machine_with

RTX = find_builder("tensorrt_rtx")
SHAPES = "1x3x16x16:1x3x24x32:1x3x48x64"
BUILD = ("--builder", "tensorrt_rtx", "--shapes", SHAPES)
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it now fails
from odm_deploy.cli import main
main()
"""

needs_rtx = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_rtx
def test_a_plan_from_elsewhere_is_replaced_without_torch(bundle: Path) -> None:
    # What an older TensorRT left.
    (bundle / "engine.plan").write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]))
    assert str(Bundle.open(bundle).plan_header) == "tensorrt 10.3.0.26"

    command = [sys.executable, "-c", WITHOUT_TORCH, "build", str(bundle), *BUILD, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert str(Bundle.open(bundle).plan_header) == f"tensorrt_rtx {RTX.version}"
    document = json.loads(done.stdout)
    assert document["plan"] == str(bundle / "engine.plan")
    assert document["engine"]["profile"] == SHAPES
    assert document["engine"]["trtexec"] in done.stderr
    inspected = run_cli("inspect", bundle, "--json")
    assert inspected.document["int8_layers"] == inspected.document["quantized_layers"] > 0


@needs_rtx
def test_only_the_manifests_engine_changes_and_shapes_are_remembered(bundle: Path) -> None:
    before = json.loads((bundle / "manifest.json").read_text())
    assert run_cli("build", bundle, *BUILD).code == 0
    after = json.loads((bundle / "manifest.json").read_text())
    assert before.pop("engine") is None
    assert after.pop("engine")["flavour"] == "tensorrt_rtx"
    assert after == before
    again = run_cli(
        "build", bundle, "--builder", "tensorrt-rtx", "--compute-capability", "8.6", "--timing-cache", bundle / "t"
    )
    assert again.code == 0, again.stderr
    assert "warns: a timing cache has no effect" in again.stderr
    engine = read_manifest(bundle).engine
    assert engine is not None
    assert engine["profile"] == SHAPES
    assert "--computeCapabilities=86" in engine["trtexec"]
    assert engine["warnings"] == ["a timing cache has no effect on TensorRT-RTX"]


@needs_rtx
def test_build_and_engine_name_the_gpu_and_the_way_out(bundle: Path) -> None:
    with machine_with(H100):
        done = run_cli("build", bundle, *BUILD)
        assert done.code == 0, done.stderr
        assert "it does NOT run on GPU 0, NVIDIA H100 (SM90): build it for this machine" in done.stderr
        for opened in (bundle, bundle / "engine.plan"):
            with pytest.raises(InputError, match=r"is for SM80, .* on GPU 0, NVIDIA H100 .*--builder tensorrt\)?$"):
                TensorRtRtxEngine.open(opened)
        with pytest.raises(InputError, match="NVIDIA H100"):
            TensorRtRtxEngine.open_bytes((bundle / "engine.plan").read_bytes())
    with machine_with(RTX2080):
        with pytest.raises(InputError, match="--compute-capability SM75"):
            TensorRtRtxEngine.open(bundle)
        assert "here it runs on" in run_cli("build", bundle, *BUILD, "--compute-capability", "SM75").stderr


@needs_rtx
def test_exact_bundles_get_no_tf32(tmp_path: Path) -> None:
    save_model(calibrated_exact("edsr", 4), tmp_path / "exact.pt")
    assert run_cli("export", tmp_path / "exact.pt", "--no-engine").code == 0
    assert run_cli("build", tmp_path / "exact", *BUILD).code == 0
    engine = read_manifest(tmp_path / "exact").engine
    assert engine is not None
    assert engine["tf32"] is False
    assert "--noTF32" in engine["trtexec"]


@needs_rtx
def test_a_build_that_fails_changes_nothing(bundle: Path) -> None:
    (bundle / "engine.plan").write_bytes(b"an older plan")
    before = contents(bundle)
    outcome = run_cli("build", bundle, *BUILD, "--timeout", "0.01")
    assert outcome.code == 1
    assert "0.01 s" in outcome.stderr
    assert contents(bundle) == before


def test_a_graph_that_is_not_the_manifests_is_refused(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as graph:
        graph.write(b"\0")
    before = contents(bundle)
    outcome = run_cli("build", bundle)
    assert outcome.code == 1
    assert "is not the one its manifest describes" in outcome.stderr
    assert contents(bundle) == before
    (bundle / "model.onnx").unlink()
    assert "holds no model.onnx" in run_cli("build", bundle).stderr


def test_what_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    outcome = run_cli("build", tmp_path)
    assert outcome.code == 1
    assert "it has no manifest.json" in outcome.stderr
    assert run_cli("build", tmp_path, "--shapes", "huge").code == 2


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_a_builder_that_cannot_build_here_comes_with_what_can(bundle: Path) -> None:
    before = contents(bundle)
    outcome = run_cli("build", bundle, "--builder", "tensorrt")
    assert outcome.code == 4
    assert "NVIDIA GPU" in outcome.stderr
    assert contents(bundle) == before


@needs_rtx
def test_a_triton_repository_may_be_written_at_once(bundle: Path, tmp_path: Path) -> None:
    outcome = run_cli("build", bundle, *BUILD, "--triton", tmp_path / "models", "--json")
    assert outcome.document["triton"] == [str(tmp_path / "models" / "bundle_onnx")]
    assert (tmp_path / "models" / "bundle_onnx" / "1" / "model.onnx").is_file()


@needs_rtx
def test_the_gpus_asked_for_are_written_down(bundle: Path) -> None:
    for asked, recorded in (
        ((), []),
        (("--compute-capability", "8.6", "--compute-capability", "sm89"), ["SM86", "SM89"]),
    ):
        done = run_cli("build", bundle, *BUILD, *asked, "--json")
        assert done.code == 0, done.stderr
        assert done.document["engine"]["targets"] == recorded
        assert json.loads((bundle / "manifest.json").read_text())["engine"]["targets"] == recorded
