"""The report about a GPU, on runtimes of the CPU and on an engine that cannot run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from odm_deploy.runtimes.compat import find_flavour, find_gpus
from tests.conftest import REPOSITORY

QUICK = ("--size", "24x20", "--seconds", "0.2", "--no-tests")


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools" / "gpu_report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def options(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> tuple[object, ...]:
    images = tiny_set / "LR_bicubic" / "X2"
    return ("--model", tiny_checkpoint, "--images", images, "--out", tmp_path / "report", *QUICK)


def test_every_measurement_is_a_row_and_is_made_once(options: tuple[object, ...], tmp_path: Path) -> None:
    done = report("--runtime", "onnxruntime", *options)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| 24x20")]
    assert [row.split("|")[2].split(",")[0].strip() for row in rows] == ["int8", "float twin (f32)"]
    assert all(float(row.split("|")[3]) > 0 for row in rows)
    assert "identical values, largest step" in text
    assert "failed" not in text
    assert done.stderr.count("measuring") == 4
    again = report("--runtime", "onnxruntime", *options)
    assert "measuring" not in again.stderr
    assert (tmp_path / "report" / "report.md").read_text() == text


@pytest.mark.skipif(bool(find_gpus()) or not find_flavour("tensorrt_rtx").usable, reason="needs RTX and no GPU")
def test_what_cannot_run_is_a_line_and_not_the_end(options: tuple[object, ...], tmp_path: Path) -> None:
    done = report("--runtime", "tensorrt_rtx", *options)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report" / "report.md").read_text()
    assert "against the reference: exit code 4" in text
    assert text.count("no NVIDIA GPU") >= 4
    for rest in ("fp32", "fp16"):
        assert (tmp_path / "report" / f"tensorrt_rtx-{rest}" / "engine.plan").stat().st_size > 10_000
    assert (tmp_path / "report" / "tensorrt_rtx-float32-24x20.plan").stat().st_size > 10_000


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    done = report(*QUICK)
    assert done.returncode == 4
    assert "no engine can run here" in done.stderr
    assert len(done.stderr.splitlines()) == 1
