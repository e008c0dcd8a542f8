"""The C++ examples, compiled and run: pixels byte for byte those of the Python engine, one line for every error."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odm_deploy.engine import Engine
from odm_deploy.machine.gpus import find_gpus
from tests.command_line import run_cli
from tests.cpp_programs import compile_program
from tests.factories import random_images


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("upscale_onnxruntime", tmp_path_factory.mktemp("onnxruntime"))


@pytest.fixture(scope="module")
def tensorrt_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("upscale_tensorrt", tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture(scope="module", params=["nhwc", "nchw"])
def byte_bundle(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle that takes bytes, in a folder whose name JSON has to escape."""
    folder = tmp_path_factory.mktemp("bytes") / 'bündel "x2"'
    options = ("--io", "uint8", "--layout", request.param, "--no-engine")
    outcome = run_cli("export", tiny_checkpoint, "-o", folder, *options)
    assert outcome.code == 0, outcome.stderr
    return folder


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return random_images(height, width, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8)


def ppm(image: np.ndarray) -> bytes:
    return b"P6\n# drawn by a test\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def run(program: Path, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(program), *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=60
    )


def test_pixels_equal_the_python_engines_byte_for_byte(program, byte_bundle, tmp_path):
    image = picture(19, 26)
    (tmp_path / "in.ppm").write_bytes(ppm(image))
    done = run(program, byte_bundle, tmp_path / "in.ppm", tmp_path / "out.ppm")
    assert done.returncode == 0, done.stderr
    with Engine.open(byte_bundle, "onnxruntime") as engine:
        expected = engine.upscale(image)
    with Image.open(tmp_path / "out.ppm") as result:
        np.testing.assert_array_equal(np.asarray(result), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ppm", "out.ppm"]


def test_frames_of_changing_size_stream_through_pipes(program, byte_bundle):
    images = [picture(12, 20, 1), picture(12, 20, 2), picture(9, 7, 3)]
    done = run(program, byte_bundle, "-", "-", stdin=b"".join(map(ppm, images)))
    assert done.returncode == 0
    with Engine.open(byte_bundle, "onnxruntime") as engine:
        results = [engine.upscale(image) for image in images]
    expected = [b"P6\n%d %d\n255\n" % (each.shape[1], each.shape[0]) + each.tobytes() for each in results]
    assert done.stdout == b"".join(expected)
    assert b"3 frames" in done.stderr


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", b"holds no frame"),
        (b"hello", b"no binary PPM"),
        (b"P6\n4 -4\n255\n", b"usable size"),
        (b"P6\n4 4\n65535\n", b"8 bits"),
        (b"P6\n4 4\n255\n" + bytes(47), b"cut short"),
    ],
)
def test_broken_input_is_one_line_and_no_output(program, byte_bundle, tmp_path, stdin, words):
    done = run(program, byte_bundle, "-", tmp_path / "out.ppm", stdin=stdin)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", '{"format": "odm-deploy bundle"', '{"a": 1} x', '{"a": "\\q"}', "[" * 5000]
)
def test_damaged_manifest_is_refused(program, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    done = run(program, tmp_path, "-", "-", stdin=ppm(picture(4, 4)))
    assert done.returncode == 1
    assert b"manifest.json" in done.stderr


def test_float_bundle_and_missing_bundle_come_with_the_command_that_helps(program, tiny_bundle, tmp_path):
    assert b"--io uint8" in run(program, tiny_bundle, "-", "-").stderr
    assert b"odm-deploy export" in run(program, tmp_path / "nowhere", "-", "-").stderr
    assert run(program).returncode == 2


def test_manifest_of_a_newer_version_is_refused(program, byte_bundle, tmp_path):
    document = json.loads((byte_bundle / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**document, "version": 99}))
    done = run(program, tmp_path, "-", "-")
    assert done.returncode == 1
    assert b"format or version" in done.stderr


def test_what_is_no_file_is_not_replaced(program, byte_bundle):
    done = run(program, byte_bundle, "-", "/dev/null", stdin=ppm(picture(4, 4)))
    assert done.returncode == 1
    assert b"no regular file" in done.stderr


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU; tests/gpu runs the program")
def test_tensorrt_program_links_and_says_what_is_missing(tensorrt_program, byte_bundle, tmp_path):
    done = run(tensorrt_program, byte_bundle, "-", tmp_path / "out.ppm")
    assert done.returncode == 1
    assert b"no engine.plan" in done.stderr
    document = json.loads((byte_bundle / "manifest.json").read_text())
    engine = {"flavour": "tensorrt", "version": "11.1.0", "gpu": None, "trtexec": "trtexec"}
    (tmp_path / "manifest.json").write_text(json.dumps({**document, "engine": engine}))
    done = run(tensorrt_program, tmp_path, "-", tmp_path / "out.ppm")
    assert done.returncode == 4
    assert b"no NVIDIA GPU" in done.stderr
    assert b"upscale_onnxruntime" in done.stderr
