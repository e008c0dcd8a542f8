"""Model repositories of `export --triton` on a real Triton server: read, warmed up, answering with the right bytes."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.engine import Engine
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.serving.triton import write_triton_models
from tests.command_line import run_cli
from tests.factories import random_images
from tests.triton_server import TritonServer, serve, server_files


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    server_files()
    folder = tmp_path_factory.mktemp("triton") / "sr_x2"
    options = (
        "--io",
        "uint8",
        "--layout",
        "nhwc",
        "--shapes",
        "tile",
        "--no-engine",
        "--triton",
        folder.parent / "models",
    )
    outcome = run_cli("export", tiny_checkpoint, "-o", folder, *options)
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="module")
def serving(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Path]]:
    """A server on the exported repository, which also holds a TensorRT model that cannot load here."""
    document = json.loads((bundle / "manifest.json").read_text())
    planned = bundle.parent / "planned"
    planned.mkdir()
    (planned / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    (planned / "engine.plan").write_bytes(b"ftrt plan")
    engine = {"flavour": "tensorrt", "version": "10.13.3.9", "profile": "1x3x16x16:1x3x64x64:4x3x64x64"}
    (planned / "manifest.json").write_text(json.dumps({**document, "engine": engine}))
    write_triton_models(planned, bundle.parent / "models", InputShapes.up_to(64, 64))
    with serve(bundle.parent / "models", tmp_path_factory.mktemp("server")) as running:
        yield running


def pictures(count: int, height: int, width: int) -> np.ndarray:
    images = [random_images(height, width, seed=seed)[0].transpose(1, 2, 0) for seed in range(count)]
    return np.stack(images).astype(np.uint8)


def test_the_model_loads_as_written_and_warms_up(serving):
    server, log = serving
    assert server.is_ready("models/sr_x2_onnx/ready"), log.read_text()
    config = server.get("models/sr_x2_onnx/config")
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["preferred_batch_size"] == [4, 8]
    assert [int(size) for size in config["input"][0]["dims"]] == [-1, -1, 3]
    assert "model_warmup" in config


def test_bytes_equal_the_engines_whatever_the_batch(serving, bundle):
    server, _ = serving
    with Engine.open(bundle, "onnxruntime") as engine:
        for count, height, width in ((1, 19, 26), (8, 16, 16), (3, 33, 8)):
            images = pictures(count, height, width)
            results = server.infer("sr_x2_onnx", images)
            np.testing.assert_array_equal(results, [engine.upscale(image) for image in images])


def test_requests_at_once_get_their_own_answers(serving, bundle):
    server, _ = serving
    images = pictures(12, 16, 20)
    with Engine.open(bundle, "onnxruntime") as engine:
        expected = [engine.upscale(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        for result, wanted in zip(
            pool.map(lambda image: server.infer("sr_x2_onnx", image[None]), images), expected, strict=True
        ):
            np.testing.assert_array_equal(result[0], wanted)


def test_batches_beyond_the_profile_are_refused(serving):
    server, _ = serving
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.infer("sr_x2_onnx", pictures(9, 16, 16))


def test_the_plans_configuration_is_read_up_to_the_missing_backend(serving):
    """No package carries the TensorRT backend: that it is asked for shows that the configuration was read."""
    _, log = serving
    (failure,) = [line for line in log.read_text().splitlines() if "'planned_tensorrt' version 1:" in line]
    assert "unable to find backend library for backend 'tensorrt'" in failure
