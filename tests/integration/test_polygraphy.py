"""NVIDIA's own command line takes our files: it reads, runs and builds what `export` wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.machine.builders import can_build, find_builder

RTX = find_builder("tensorrt_rtx")
PROGRAM = shutil.which("polygraphy", path=str(Path(sys.executable).parent))

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="polygraphy is not installed")


def polygraphy(*arguments: object, **environment: str) -> str:
    assert PROGRAM is not None
    command = [PROGRAM, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect_names_image_edges_and_opset(tiny_bundle: Path) -> None:
    text = polygraphy("inspect", "model", tiny_bundle / "model.onnx")
    # Opset 20 is the highest that the parser of TensorRT 10.0 takes.
    assert "ONNX Opset: 20" in text
    assert "input [dtype=float32, shape=('n', 3, 'h', 'w')]" in text
    assert "output [dtype=float32, shape=('n', 3, '2*h', '2*w')]" in text


def test_run_computes_the_enlarged_image(tiny_bundle: Path) -> None:
    text = polygraphy("run", tiny_bundle / "model.onnx", "--onnxrt", "--input-shapes", "input:[1,3,16,20]")
    assert "output [dtype=float32, shape=(1, 3, 32, 40)]" in text
    assert "PASSED" in text


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")
def test_convert_builds_a_plan(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    sides = {"min": 16, "opt": 32, "max": 64}
    shapes = [word for name, side in sides.items() for word in (f"--trt-{name}-shapes", f"input:[1,3,{side},{side}]")]
    options = ("--model-type", "onnx", "--convert-to", "trt", *shapes)
    polygraphy("convert", tiny_bundle / "model.onnx", "-o", plan, *options, POLYGRAPHY_USE_TENSORRT_RTX="1")
    header = PlanHeader.of_file(plan)
    assert str(header) == f"tensorrt_rtx {RTX.version}"
