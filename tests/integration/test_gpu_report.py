"""The report about a GPU, on runtimes of the CPU and on an engine that cannot run here.

Its steps are processes, most of whose time goes into importing torch: here they share one, except where that matters.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.machine.builders import find_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.quantization.post_training import CalibrationSettings
from tests.command_line import run_cli
from tests.conftest import REPOSITORY
from tests.exact_models import calibrated_exact
from tests.tool_modules import load_tool

PROGRAM = REPOSITORY / "tools" / "gpu_report.py"
QUICK = ("--size", "24x20", "--seconds", "0.2", "--no-tests", "--no-training")
without_gpu = pytest.mark.skipif(
    bool(find_gpus()) or not find_builder("tensorrt_rtx").usable, reason="needs RTX and no GPU"
)


@pytest.fixture
def program() -> ModuleType:
    return load_tool("gpu_report")


@pytest.fixture
def report(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path):
    """Write a report on one runtime, in this process; returns its text."""

    def run_here(module: str, *arguments: object, timeout_s: float) -> tuple[int, str, str]:
        assert module == "odm_deploy"
        assert timeout_s > 0
        outcome = run_cli(*map(str, arguments))
        return outcome.code, outcome.stdout, outcome.stderr

    monkeypatch.setattr(sys.modules["gpu_report_steps"], "run_python", run_here)
    folder = tmp_path / "report"
    images = tiny_set / "LR_bicubic" / "X2"

    def write(runtime: str, model: Path = tiny_checkpoint, *more: object) -> str:
        options = ("--runtime", runtime, "--model", model, "--images", images, "--out", folder, *QUICK, *more)
        program.main.main([str(each) for each in options], standalone_mode=False)
        return (folder / "report.md").read_text()

    return write


def test_every_measurement_is_a_row_and_is_made_once(report, capsys, tmp_path) -> None:
    text = report("onnxruntime")
    rows = [line for line in text.splitlines() if line.startswith("| 24x20")]
    assert [row.split("|")[2].split(",")[0].strip() for row in rows] == ["int8", "float twin (fp32)"]
    assert all(float(row.split("|")[3]) > 0 for row in rows)
    assert "identical values, largest step" in text
    assert "reference" in text and "; passed" in text
    assert "failed" not in text and "Not reached" not in text
    assert capsys.readouterr().err.count("measuring") == 4
    # A result that somebody's editor broke is measured again.
    (tmp_path / "report" / "doctor.json").write_text("{")
    assert report("onnxruntime") == text
    assert capsys.readouterr().err.count("measuring") == 1
    with tarfile.open(tmp_path / "report" / "report.tar.gz") as archive:
        names = archive.getnames()
        assert archive.extractfile("report/report.md").read().decode() == text
    assert {Path(name).name for name in names} >= {"report.md", "doctor.json", "fp32-24x20-bench.json", "manifest.json"}
    assert {Path(name).suffix for name in names} <= {".md", ".json", ".svg", ".html"}


@without_gpu
def test_what_cannot_run_is_a_line_and_not_the_end(report, tiny_checkpoint, tmp_path) -> None:
    text = report("tensorrt_rtx")
    assert "tensorrt_rtx against the reference: exit code 4" in text
    assert text.count("onnxruntime against the reference: ") == 2
    assert text.count("no NVIDIA GPU") >= 4
    measured = tmp_path / "report" / f"tensorrt_rtx-{tiny_checkpoint.stem}"
    # Every engine that is timed was built, for its size alone.
    for rest in ("fp32", "fp16"):
        assert (measured / rest / "engine.plan").stat().st_size > 10_000
        manifest = (measured / f"{rest}-24x20" / "manifest.json").read_text()
        assert '"profile": "1x3x20x24:1x3x20x24:1x3x20x24"' in manifest
    assert (measured / "float32-24x20.plan").stat().st_size > 10_000
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| 24x20")]
    built = [f"int8, rest {rest}{kind}" for kind in ("", ", built for all sizes") for rest in ("fp16", "fp32")]
    assert rows == [*built[:2], "fp32", *built[2:]]


@without_gpu
def test_an_exact_model_is_left_in_float32(report, tmp_path) -> None:
    save_model(calibrated_exact("edsr"), tmp_path / "exact.pt")
    text = report("tensorrt_rtx", tmp_path / "exact.pt")
    assert "## tensorrt_rtx: exact" in text
    assert "rest fp16: not of an exact model" in text
    assert "export failed" not in text
    assert "rest fp16 |" not in text


def test_a_broken_model_is_a_line_beside_the_machine(report, tmp_path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    text = report("onnxruntime", tmp_path / "broken.pt")
    assert "int8, rest fp32: exit code 1: " in text
    assert "- CPU: " in text


def test_time_that_is_over_leaves_a_page_that_names_what_is_missing(report) -> None:
    text = report("onnxruntime", REPOSITORY / "nowhere.pt", "--minutes", "0.01")
    assert "doctor: not reached" in text
    assert "## Not reached" in text
    assert "nowhere on onnxruntime, int8, rest fp32 at 24x20" in text


def test_a_model_of_eight_bits_comes_from_trained_weights_or_says_that_it_does_not(
    program: ModuleType, weights_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ODM_WEIGHTS", raising=False)
    crops = program.load_crops(1)
    monkeypatch.setattr(program, "load_crops", lambda _: crops)
    # How well layers are fitted is no matter here, and takes a minute.
    plain = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False)
    monkeypatch.setattr(program, "quantize", partial(program.quantize, settings=plain))
    assert "random weights: PSNR says nothing" in program.eight_bits(tmp_path, None)["from"]
    assert len(load_model(tmp_path / "w8a8.pt").layers) == 36
    random = (tmp_path / "w8a8.pt").read_bytes()
    monkeypatch.setenv("ODM_WEIGHTS", str(weights_root))
    assert "edsr x4, trained weights edsr_baseline_x4.pt" in program.eight_bits(tmp_path, None)["from"]
    trained = load_model(tmp_path / "w8a8.pt")
    assert trained.exact is None
    assert (tmp_path / "w8a8.pt").read_bytes() != random


def test_a_step_is_a_process_whose_end_is_reported() -> None:
    code, output, errors = load_tool("toolbox").run_python("odm_deploy", "bench", "nowhere")
    assert (code, output) == (1, "")
    assert "nowhere" in errors


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    command = [sys.executable, str(PROGRAM), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 4
    assert "no engine can run here" in done.stderr
    assert len(done.stderr.splitlines()) == 1
