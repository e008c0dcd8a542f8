"""Engines on a real GPU: what they compute, at every shape, from many threads, and what refuses to load."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odm_deploy.bench.benchmark import benchmark
from odm_deploy.bench.timing import Effort
from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.errors import InputError, MissingError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.imaging.writing import write_image
from odm_deploy.machine.builders import BUILDERS, TENSORRT_RTX, find_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import runtime_class, why_unusable
from odm_deploy.runtimes.tensorrt.cuda import Buffer, Cuda, Stream
from odm_deploy.runtimes.tensorrt.device_tensors import DeviceArray
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.kernel_cache import FOLDER_VARIABLE
from tests.command_line import run_cli
from tests.factories import lowered, tiny_model
from tests.factories import random_images as random_pictures
from tests.sr_graphs import random_images, sr_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU that the driver can use"),
]
SHAPES = InputShapes((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 64, 64))


@pytest.fixture(scope="module", params=BUILDERS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = find_builder(request.param)
    if problem := why_unusable(builder.name):
        pytest.skip(problem)
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    folder = tmp_path_factory.mktemp(builder.name)
    (folder / "model.onnx").write_bytes(sr_model().SerializeToString())
    build_engine(
        folder / "model.onnx", folder / "engine.plan", BuildOptions(builder=builder.name, shapes=SHAPES, tf32=False)
    )
    (folder / "name").write_text(builder.name)
    return folder


@pytest.fixture(params=[True, False], ids=["graph", "no-graph"])
def engine(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    kind = runtime_class((bundle / "name").read_text())
    with kind.open(bundle, RuntimeOptions(cuda_graph=request.param)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference() -> Iterator[Runtime]:
    with OnnxRuntime.open_bytes(sr_model().SerializeToString(), RuntimeOptions(optimize=False)) as runtime:
        yield runtime


def assert_agree(result: np.ndarray, expected: np.ndarray) -> None:
    assert result.shape == expected.shape
    # Single codes flip where sums round differently.
    assert np.mean(np.abs(result - expected) > 0.01) < 0.02


def test_shapes_come_and_go_and_results_stay(engine: Runtime, reference: Runtime) -> None:
    # More shapes than an engine keeps bound, each of them twice.
    shapes = [(1, 8, 8), (2, 16, 16), (1, 64, 64), (1, 17, 31), (2, 40, 9), (1, 12, 50)] * 2
    for seed, (n, h, w) in enumerate(shapes):
        images = random_images(n, h, w, seed)
        for _ in range(2):
            assert_agree(engine.upscale(images), reference.upscale(images))


def test_results_belong_to_the_caller(engine: Runtime) -> None:
    first = engine.run({"image": random_images(seed=1)})["sr"]
    kept = first.copy()
    engine.run({"image": random_images(seed=2)})
    np.testing.assert_array_equal(first, kept)


def test_threads_may_share_an_engine(engine: Runtime) -> None:
    images = [random_images(h=8 + seed, seed=seed) for seed in range(6)]
    alone = [engine.upscale(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        for index, result in enumerate(pool.map(engine.upscale, images * 3)):
            np.testing.assert_array_equal(result, alone[index % 6])


def test_sizes_outside_the_profile_are_refused_with_its_range(engine: Runtime) -> None:
    for h, w in ((7, 16), (65, 16), (16, 100)):
        with pytest.raises(InputError, match=r"1x3x8x8 to 2x3x64x64"):
            engine.upscale(random_images(h=h, w=w))


def test_parts_of_a_run_add_up(engine: Runtime) -> None:
    times = engine.timed_run({"image": random_images()})
    assert times.h2d_ms is not None
    assert times.compute_ms is not None
    assert times.d2h_ms is not None
    assert min(times.h2d_ms, times.compute_ms, times.d2h_ms) > 0
    assert times.latency_ms == pytest.approx(times.h2d_ms + times.compute_ms + times.d2h_ms)


def to_gpu(cuda: Cuda, array: np.ndarray) -> DeviceArray:
    with closing(Buffer(cuda, array.nbytes)) as staging, closing(cuda.stream()) as stream:
        staging.bytes[:] = array.reshape(-1).view(np.uint8)
        pointer = cuda.allocate(array.nbytes)
        staging.upload(stream)
        staging.copy_to(pointer, stream)
        stream.synchronize()
    return DeviceArray(pointer, array.shape, array.dtype, (CUDA, 0), cuda.free)


def from_gpu(cuda: Cuda, array: Any, stream: Stream) -> np.ndarray:
    borrowed = BorrowedTensor(array, stream=int(stream.handle))
    with closing(Buffer(cuda, math.prod(borrowed.shape) * borrowed.dtype.itemsize)) as staging:
        staging.copy_from(borrowed.pointer, stream)
        staging.download(stream)
        stream.synchronize()
        return staging.bytes.copy().view(borrowed.dtype).reshape(borrowed.shape)


@pytest.mark.parametrize("stream", ["engine's", "caller's", "default"])
def test_tensors_in_gpu_memory_give_the_same_pixels(engine: Runtime, stream: str) -> None:
    """Only TensorRT itself can tell whether it replays a graph for callers on the default stream."""
    cuda = Cuda.load()
    name = engine.inputs[0].name
    with closing(cuda.stream()) as theirs, closing(cuda.stream()) as reading:
        handle = {"engine's": None, "caller's": int(theirs.handle), "default": 0}[stream]
        images = [random_images(h=h, w=w, seed=h) for h, w in ((8, 8), (40, 17), (8, 8), (64, 64))]
        inputs = [to_gpu(cuda, each) for each in images]
        results = [engine.run_on_device({name: each}, stream=handle) for each in inputs]
        for result, each in zip(results, images, strict=True):
            (array,) = result.values()
            np.testing.assert_array_equal(from_gpu(cuda, array, reading), engine.upscale(each))
    assert engine.speed_note == ""


def test_graphs_are_captured_where_they_are_asked_for(engine: Runtime, request: pytest.FixtureRequest) -> None:
    """What a simulated TensorRT lets itself be captured for says nothing about a real one."""
    engine.upscale(random_images())
    assert engine.describe()["cuda_graph"] is ("no-graph" not in request.node.name)
    assert engine.speed_note == ""


def test_queued_runs_take_no_longer_than_single_ones(engine: Runtime) -> None:
    """How long the host takes to launch a run, a simulated GPU cannot know."""
    assert isinstance(engine, TensorRtEngine)
    feeds = {"image": random_images(1, 64, 64)}
    for _ in range(20):
        engine.timed_run(feeds)
    single = np.median([engine.timed_run(feeds).compute_ms for _ in range(50)])
    assert 0 < engine.back_to_back_ms(feeds, 50) < 1.5 * float(single)


def test_contexts_of_one_engine_run_side_by_side(bundle: Path) -> None:
    runtime = (bundle / "name").read_text()
    pictures = [np.full((16, 16 + index % 3, 3), index, np.uint8) for index in range(12)]
    with Engine.open(bundle, runtime, RuntimeOptions(contexts=3)) as engine:
        alone = [engine.upscale(picture) for picture in pictures]
        with ThreadPoolExecutor(6) as pool:
            for result, expected in zip(pool.map(engine.upscale, pictures), alone, strict=True):
                np.testing.assert_array_equal(result, expected)


def test_kernels_compiled_once_are_taken_from_the_cache(bundle: Path, tmp_path: Path) -> None:
    if (bundle / "name").read_text() != TENSORRT_RTX:
        pytest.skip("only TensorRT for RTX compiles kernels when it runs")
    cache, images = tmp_path / "engine.cache", random_images()
    results: list[np.ndarray] = []
    contents: list[bytes] = []
    # The second run finds kernels, the third one garbage.
    for found in (None, None, b"garbage"):
        if found is not None:
            cache.write_bytes(found)
        with runtime_class(TENSORRT_RTX).open(bundle, RuntimeOptions(kernel_cache=cache)) as runtime:
            results.append(runtime.upscale(images))
        contents.append(cache.read_bytes())
    assert min(map(len, contents)) > len(b"garbage")
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_the_environment_names_a_folder_for_compiled_kernels(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (bundle / "name").read_text() != TENSORRT_RTX:
        pytest.skip("only TensorRT for RTX compiles kernels when it runs")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with Engine.open(bundle) as engine:
        engine.upscale(np.zeros((9, 14, 3), np.uint8))
        kept = Path(engine.describe()["kernel_cache"])
    assert [kept] == list(tmp_path.iterdir())
    assert kept.stat().st_size > 1000


def test_the_default_size_is_the_profiles_optimum(engine: Runtime) -> None:
    assert engine.typical_shape() == (1, 3, 16, 16)
    assert 0 <= engine.describe()["context_memory_mib"] < 1000


def test_a_plan_with_damaged_contents_is_refused(bundle: Path) -> None:
    plan = bytearray((bundle / "engine.plan").read_bytes())
    plan[200:] = bytes(len(plan) - 200)
    with pytest.raises(InputError, match="cannot load"):
        runtime_class((bundle / "name").read_text()).open_bytes(bytes(plan))


def test_bench_builds_the_half_precision_twin(bundle: Path) -> None:
    report = benchmark(bundle, (bundle / "name").read_text(), effort=Effort(iterations=10))
    assert report.shape == (1, 3, 16, 16)
    assert report.baseline is not None, report.baseline_note
    assert report.baseline.model == "float twin (fp16)"
    assert report.measurement.compute_ms is not None
    assert report.back_to_back_speedup is not None
    assert report.layer_times
    total_ms = sum(layer.ms for layer in report.layer_times)
    assert 0.3 * report.measurement.compute_ms.p50 < total_ms < 100 * report.measurement.compute_ms.p50
    assert report.gpu is not None, report.gpu_note
    assert report.gpu.memory_mib is None or 0 < report.gpu.memory_mib < 20_000
    assert report.gpu.sm_clock_mhz is None or 100 < report.gpu.sm_clock_mhz[1] < 5000


@pytest.mark.parametrize("name", ["onnxruntime_cuda", "onnxruntime_tensorrt", "onnxruntime_rtx"])
def test_onnx_runtime_computes_the_same_on_the_gpu(name: str, bundle: Path, reference: Runtime) -> None:
    try:
        runtime = runtime_class(name).open(bundle / "model.onnx")
    except MissingError as error:
        pytest.skip(str(error))
    with runtime:
        for n, h, w in ((1, 16, 16), (2, 9, 14)):
            images = random_images(n, h, w)
            assert_agree(runtime.upscale(images), reference.upscale(images))


def test_a_plan_for_another_gpu_is_refused_with_both_named(tmp_path: Path) -> None:
    if problem := why_unusable(TENSORRT_RTX):
        pytest.skip(problem)
    here = find_gpus()[0]
    other = "SM86" if here.sm != "SM86" else "SM89"
    save_model(tiny_model(8), tmp_path / "model.pt")
    exported = ("-o", tmp_path / "bundle", "--builder", TENSORRT_RTX, "--compute-capability", other)
    outcome = run_cli("export", tmp_path / "model.pt", *exported, "--shapes", "1x3x16x16")
    assert outcome.code == 0, outcome.stderr
    with pytest.raises(InputError, match=rf"it is for {other}, and engines run on .*{here.sm}"):
        runtime_class(TENSORRT_RTX).open(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["onnxruntime_tensorrt", "onnxruntime_rtx"])
def test_onnx_runtime_takes_a_half_precision_rest(name: str) -> None:
    graph, images = lowered(tiny_model(8), precision="fp16"), random_pictures(24, 32)
    try:
        runtime = runtime_class(name).open_bytes(graph.SerializeToString())
    except MissingError as error:
        pytest.skip(str(error))
    with runtime, OnnxRuntime.open_bytes(graph.SerializeToString(), RuntimeOptions(optimize=False)) as expected:
        difference = np.abs(runtime.upscale(images) - expected.upscale(images))
    assert np.mean(difference > 2.0) < 0.02


@pytest.mark.parametrize("options", [(), ("--precision", "fp16", "--io", "uint8", "--layout", "nhwc")])
def test_verify_looks_into_every_layer_of_an_engine(bundle: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    name, model = (bundle / "name").read_text(), tiny_model(8)
    save_model(model, tmp_path / "model.pt")
    exported = ("-o", tmp_path / "bundle", "--builder", name, "--shapes", "1x3x16x16:1x3x32x32:1x3x96x96", "--no-tf32")
    outcome = run_cli("export", tmp_path / "model.pt", *exported, *options)
    assert outcome.code == 0, outcome.stderr
    write_image(tmp_path / "image.png", random_pictures(40, 56)[0].transpose(1, 2, 0).astype(np.uint8))
    for target in (tmp_path / "bundle", tmp_path / "bundle" / "engine.plan"):
        arguments = ("--against", tmp_path / "model.pt", "--images", tmp_path / "image.png", "--runtime", name)
        outcome = run_cli("verify", target, *arguments, "--json")
        assert outcome.code == 0, outcome.stderr
        assert {layer["name"] for layer in outcome.document["layers"]} == {*model.layers, "output"}
        assert outcome.document["passed"]


def test_a_bundle_opens_on_its_engine(bundle: Path) -> None:
    with Engine.open(bundle) as engine:
        assert engine.runtime.name == (bundle / "name").read_text()
        assert engine.upscale(np.zeros((9, 14, 3), np.uint8)).shape == (18, 28, 3)
