"""The report about a GPU, on runtimes of the CPU and on an engine that cannot run here.

Its steps are processes, most of whose time goes into importing torch: here they share one, except where that matters.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.machine.builders import find_builder
from odm_deploy.machine.gpus import find_gpus
from tests.command_line import run_cli
from tests.conftest import REPOSITORY
from tests.exact_models import calibrated_exact
from tests.tool_modules import load_tool

PROGRAM = REPOSITORY / "tools" / "gpu_report.py"
QUICK = ("--size", "24x20", "--seconds", "0.2", "--no-tests")


@pytest.fixture
def program() -> ModuleType:
    return load_tool("gpu_report")


@pytest.fixture
def report(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path):
    """Write a report on one runtime, in this process; returns its text."""

    def run_here(module: str, *arguments: object, timeout_s: float) -> tuple[int, str, str]:
        assert (module, timeout_s) == ("odm_deploy", program.STEP_LIMIT_S)
        outcome = run_cli(*map(str, arguments))
        return outcome.code, outcome.stdout, outcome.stderr

    monkeypatch.setattr(program, "run_python", run_here)
    folder = tmp_path / "report"
    images = tiny_set / "LR_bicubic" / "X2"

    def write(runtime: str, model: Path = tiny_checkpoint) -> str:
        options = ("--runtime", runtime, "--model", model, "--images", images, "--out", folder, *QUICK)
        program.main.main([str(each) for each in options], standalone_mode=False)
        return (folder / "report.md").read_text()

    return write


def test_every_measurement_is_a_row_and_is_made_once(report, capsys) -> None:
    text = report("onnxruntime")
    rows = [line for line in text.splitlines() if line.startswith("| 24x20")]
    assert [row.split("|")[2].split(",")[0].strip() for row in rows] == ["int8", "float twin (fp32)"]
    assert all(float(row.split("|")[3]) > 0 for row in rows)
    assert "identical values, largest step" in text
    assert "reference" in text and "; passed" in text
    assert "failed" not in text
    assert capsys.readouterr().err.count("measuring") == 4
    assert report("onnxruntime") == text
    assert "measuring" not in capsys.readouterr().err


@pytest.mark.skipif(bool(find_gpus()) or not find_builder("tensorrt_rtx").usable, reason="needs RTX and no GPU")
def test_what_cannot_run_is_a_line_and_not_the_end(report, tiny_checkpoint, tmp_path) -> None:
    text = report("tensorrt_rtx")
    assert "tensorrt_rtx against the reference: exit code 4" in text
    assert text.count("onnxruntime against the reference: ") == 2
    assert text.count("no NVIDIA GPU") >= 4
    measured = tmp_path / "report" / f"tensorrt_rtx-{tiny_checkpoint.stem}"
    for rest in ("fp32", "fp16"):
        assert (measured / rest / "engine.plan").stat().st_size > 10_000
    assert (measured / "float32-24x20.plan").stat().st_size > 10_000


@pytest.mark.skipif(bool(find_gpus()) or not find_builder("tensorrt_rtx").usable, reason="needs RTX and no GPU")
def test_an_exact_model_is_left_in_float32(report, tmp_path) -> None:
    save_model(calibrated_exact("edsr"), tmp_path / "exact.pt")
    text = report("tensorrt_rtx", tmp_path / "exact.pt")
    assert "## tensorrt_rtx: exact" in text
    assert "rest fp16: not of an exact model" in text
    assert "export failed" not in text


def test_an_ordinary_model_is_made_once_where_none_is_named(program: ModuleType, tmp_path: Path) -> None:
    path = program.ordinary_model(tmp_path / "ordinary.pt")
    assert len(load_model(path).layers) == 36
    before = path.stat()
    assert program.ordinary_model(path).stat().st_mtime_ns == before.st_mtime_ns


def test_a_step_is_a_process_whose_end_is_reported(program: ModuleType) -> None:
    code, output, errors = program.run_python("odm_deploy", "bench", "nowhere")
    assert (code, output) == (1, "")
    assert "nowhere" in errors


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    command = [sys.executable, str(PROGRAM), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 4
    assert "no engine can run here" in done.stderr
    assert len(done.stderr.splitlines()) == 1
