"""The C++ TensorRT example on a real GPU. TENSORRT_HOME must hold headers and library of the TensorRT that builds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.registry import why_unusable
from tests.command_line import run_cli
from tests.cpp_programs import compile_program
from tests.factories import random_images, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU that the driver can use"),
]


def test_pixels_equal_the_python_engines(tmp_path: Path) -> None:
    program = compile_program("upscale_tensorrt", tmp_path / "cpp")
    builder = (
        "tensorrt_rtx" if "tensorrt_rtx" in subprocess.check_output(["ldd", str(program)], text=True) else "tensorrt"
    )
    if problem := why_unusable(builder):
        pytest.skip(problem)
    save_model(tiny_model(8), tmp_path / "model.pt")
    options = ("--io", "uint8", "--layout", "nhwc", "--builder", builder, "--shapes", "1x3x8x8:1x3x19x26:1x3x64x64")
    outcome = run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", *options)
    assert outcome.code == 0, outcome.stderr
    # A size that stays is replayed from a graph, which a change of size has to end.
    sizes = ((19, 26), (19, 26), (19, 26), (8, 8), (64, 40), (64, 40), (19, 26))
    pictures = [random_images(h, w, seed=seed)[0] for seed, (h, w) in enumerate(sizes)]
    images = [each.transpose(1, 2, 0).astype(np.uint8) for each in pictures]
    frames = [b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes() for image in images]
    command = [str(program), str(tmp_path / "bundle"), "-", "-"]
    done = subprocess.run(command, input=b"".join(frames), capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    with Engine.open(tmp_path / "bundle", builder) as engine:
        results = [engine.upscale(image) for image in images]
    expected = [b"P6\n%d %d\n255\n" % (each.shape[1], each.shape[0]) + each.tobytes() for each in results]
    assert done.stdout == b"".join(expected)
    too_large = b"P6\n80 80\n255\n" + bytes(3 * 80 * 80)
    refused = subprocess.run(command, input=too_large, capture_output=True, check=False, timeout=300)
    assert refused.returncode == 1
    assert b"it was built for 1x8x8x3 to 1x64x64x3" in refused.stderr
