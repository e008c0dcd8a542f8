"""ONNX Runtime's CUDA provider on a real GPU: the way to an NVIDIA card that needs nothing but pip.

It computes quantizers and convolutions of a QDQ graph as separate float kernels, some of them, where it has none,
on the CPU. So it has to agree with the reference as any runtime does; exact graphs agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.errors import InputError, MissingError
from odm_deploy.imaging.reading import read_image
from odm_deploy.imaging.writing import write_image
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime, OnnxRuntimeCuda
from odm_deploy.runtimes.options import RuntimeOptions
from tests.command_line import run_cli
from tests.factories import lowered, random_images, tiny_model
from tests.sr_graphs import sr_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU that the driver can use"),
]

NAME = OnnxRuntimeCuda.name


@pytest.fixture(autouse=True, scope="module")
def runtime() -> Iterator[Runtime]:
    """A small graph on the GPU; without the provider every test here is skipped."""
    try:
        opened = OnnxRuntimeCuda.open_bytes(sr_model().SerializeToString())
    except MissingError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    write_image(path, random_images(40, 56)[0].transpose(1, 2, 0).astype(np.uint8))
    return path


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("options", [(), ("--io", "uint8", "--layout", "nhwc")], ids=["float", "bytes"])
def test_verify_accepts_every_layer(bits: int, options: tuple[str, ...], photo: Path, tmp_path: Path) -> None:
    model = tiny_model(bits)
    save_model(model, tmp_path / "model.pt")
    outcome = run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine", *options)
    assert outcome.code == 0, outcome.stderr
    outcome = run_cli(
        *("verify", tmp_path / "bundle", "--against", tmp_path / "model.pt", "--images", photo, "--json"),
        *("--runtime", NAME),
    )
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    assert {layer["name"] for layer in outcome.document["layers"]} == {*model.layers, "output"}


def test_float32_is_not_rounded_to_eleven_bits() -> None:
    """TF32, its own default, moves outputs by tenths of a grey level."""
    graph, images = lowered(tiny_model(8)).SerializeToString(), random_images(24, 32)
    with (
        OnnxRuntimeCuda.open_bytes(graph) as found,
        OnnxRuntime.open_bytes(graph, RuntimeOptions(optimize=False)) as cpu,
    ):
        difference = np.abs(found.upscale(images) - cpu.upscale(images))
    assert np.median(difference) < 1e-3


def test_half_precision_rests_run(photo: Path, tmp_path: Path) -> None:
    save_model(tiny_model(8), tmp_path / "model.pt")
    outcome = run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine", "--precision", "fp16")
    assert outcome.code == 0, outcome.stderr
    outcome = run_cli("upscale", photo, tmp_path / "out.png", "--model", tmp_path / "bundle", "--runtime", NAME)
    assert outcome.code == 0, outcome.stderr
    assert read_image(tmp_path / "out.png").rgb.shape == (80, 112, 3)


def test_pictures_tiles_and_threads_give_what_the_cpu_gives(photo: Path, tmp_path: Path) -> None:
    save_model(tiny_model(4), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine").code == 0
    pictures = [random_images(20 + seed, 30, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8) for seed in range(4)]
    with Engine.open(tmp_path / "bundle", NAME) as gpu, Engine.open(tmp_path / "bundle", "onnxruntime") as cpu:
        expected = [cpu.upscale(picture) for picture in pictures]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(gpu.upscale, pictures))
        assert gpu.describe()["provider"] == "CUDAExecutionProvider"
    for result, wanted in zip(found, expected, strict=True):
        assert np.mean(result != wanted) < 0.02
    for tile in ((), ("--tile", "32")):
        outcome = run_cli(
            "upscale", photo, tmp_path / "out.png", "--model", tmp_path / "bundle", "--runtime", NAME, *tile
        )
        assert outcome.code == 0, outcome.stderr


def test_bench_times_it_beside_its_float_twin(tmp_path: Path) -> None:
    save_model(tiny_model(8), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine").code == 0
    outcome = run_cli("bench", tmp_path / "bundle", "--runtime", NAME, "--size", "64x64", "--seconds", "1", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["latency_ms"]["p50"] > 0


def test_an_image_too_large_for_the_card_is_one_line(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="cannot run the model on"):
        runtime.upscale(np.zeros((1, 3, 60_000, 60_000), np.float32))
    assert runtime.upscale(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 3, 16, 16)
