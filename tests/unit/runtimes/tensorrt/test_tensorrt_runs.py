"""How engines use streams, buffers and graphs, on a simulated GPU that defers all work. On a real one: tests/gpu."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.pool import RuntimePool
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.device_tensors import DeviceArray
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from tests.simulated_gpu import BEST, TENSORRT, SimulatedCuda, SimulatedEngine

pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


@pytest.fixture
def gpu() -> SimulatedCuda:
    return SimulatedCuda()


@pytest.fixture(params=[True, False], ids=["graph", "no-graph"])
def engine(gpu: SimulatedCuda, request: pytest.FixtureRequest) -> Iterator[TensorRtEngine]:
    options = RuntimeOptions(cuda_graph=request.param)
    with TensorRtEngine(TENSORRT, SimulatedEngine(gpu), Cuda(gpu), None, options, "simulated GPU") as opened:
        yield opened
    gc.collect()
    leaked = (gpu.memory, gpu.graphs, gpu.events)
    assert not any(leaked), leaked
    assert list(gpu.pending) == [0]


def picture(h: int, w: int, seed: int = 0, n: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3, h, w), np.float32)


def doubled(images: np.ndarray) -> np.ndarray:
    return images.repeat(2, 2).repeat(2, 3)


def on_gpu(gpu: SimulatedCuda, array: np.ndarray) -> DeviceArray:
    pointer = gpu._cudaMalloc(array.nbytes)
    ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
    return DeviceArray(pointer, array.shape, array.dtype, (CUDA, 0), gpu._cudaFree)


def read(array: object) -> np.ndarray:
    """What lies at an array's address now, finished or not."""
    borrowed = BorrowedTensor(array, stream=-1)
    size = math.prod(borrowed.shape) * borrowed.dtype.itemsize
    return np.frombuffer(ctypes.string_at(borrowed.pointer, size), borrowed.dtype).reshape(borrowed.shape)


def test_shapes_come_and_go(engine):
    for seed, (h, w) in enumerate([(2, 2), (4, 6), (16, 16), (3, 5), (7, 2), (9, 9), (2, 2)] * 2):
        np.testing.assert_array_equal(engine.upscale(picture(h, w, seed)), doubled(picture(h, w, seed)))


def test_parts_of_a_timed_run_add_up(engine):
    times = engine.timed_run({"image": picture(*BEST[2:])})
    assert times.latency_ms == times.h2d_ms + times.compute_ms + times.d2h_ms == 0.75


def test_device_tensors_go_in_and_come_out_finished(engine, gpu):
    for seed in range(3):
        images = picture(4, 6, seed)
        result = engine.run_on_device({"image": on_gpu(gpu, images)})["sr"]
        assert result.__dlpack_device__() == (CUDA, 0)
        np.testing.assert_array_equal(read(result), doubled(images))


def test_work_on_the_callers_stream_is_done_when_that_stream_is(engine, gpu):
    stream = gpu._cudaStreamCreateWithFlags(0)
    images = [picture(4, 6, seed) for seed in range(3)]
    inputs = [on_gpu(gpu, each) for each in images]
    results = [engine.run_on_device({"image": each}, stream=stream)["sr"] for each in inputs]
    assert not np.array_equal(read(results[0]), doubled(images[0]))
    gpu._cudaStreamSynchronize(stream)
    for result, each in zip(results, images, strict=True):
        np.testing.assert_array_equal(read(result), doubled(each))
    gpu._cudaStreamDestroy(stream)


def test_streams_that_share_buffers_wait_for_each_other(engine, gpu):
    streams = [gpu._cudaStreamCreateWithFlags(0) for _ in range(2)]
    images = [picture(4, 6, seed) for seed in range(3)]
    inputs = [on_gpu(gpu, each) for each in images]
    first = engine.run_on_device({"image": inputs[0]}, stream=streams[0])["sr"]
    second = engine.run_on_device({"image": inputs[1]}, stream=streams[1])["sr"]
    # A run from host memory in between, on the engine's own stream.
    np.testing.assert_array_equal(engine.upscale(images[2]), doubled(images[2]))
    gpu._cudaStreamSynchronize(streams[1])
    np.testing.assert_array_equal(read(first), doubled(images[0]))
    np.testing.assert_array_equal(read(second), doubled(images[1]))
    for stream in streams:
        gpu._cudaStreamDestroy(stream)


def test_consumer_on_another_stream_waits_for_the_result(engine, gpu):
    ours, theirs = gpu._cudaStreamCreateWithFlags(0), gpu._cudaStreamCreateWithFlags(0)
    images = picture(4, 6)
    result = engine.run_on_device({"image": on_gpu(gpu, images)}, stream=ours)["sr"]
    # As torch.from_dlpack does: it names the stream it is going to read on.
    borrowed = BorrowedTensor(result, stream=theirs)
    gpu._cudaStreamSynchronize(theirs)
    np.testing.assert_array_equal(read(result), doubled(images))
    del borrowed
    for stream in (ours, theirs):
        gpu._cudaStreamDestroy(stream)


def test_outputs_go_where_the_caller_wants_them(engine, gpu):
    images, target = picture(4, 6), on_gpu(gpu, np.zeros((1, 3, 8, 12), np.float32))
    assert engine.run_on_device({"image": on_gpu(gpu, images)}, {"sr": target})["sr"] is target
    np.testing.assert_array_equal(read(target), doubled(images))
    too_small = on_gpu(gpu, np.zeros((1, 3, 4, 6), np.float32))
    with pytest.raises(InputError, match="does not fit"):
        engine.run_on_device({"image": on_gpu(gpu, images)}, {"sr": too_small})


def test_results_may_be_dropped_and_outlived(engine, gpu):
    stream = gpu._cudaStreamCreateWithFlags(0)
    source = on_gpu(gpu, picture(4, 6))
    before = len(gpu.memory)
    engine.run_on_device({"image": source}, stream=stream)
    gc.collect()
    kept = BorrowedTensor(engine.run_on_device({"image": source})["sr"], stream=-1)
    gc.collect()
    assert kept.pointer in gpu.memory
    del kept
    gc.collect()
    buffers_of_the_binding = 4
    assert len(gpu.memory) == before + buffers_of_the_binding
    gpu._cudaStreamDestroy(stream)


def test_strange_tensors_are_refused(engine, gpu):
    images = picture(4, 6)
    with pytest.raises(InputError, match="not in the memory of GPU 0"):
        engine.run_on_device({"image": images})
    with pytest.raises(InputError, match="not the tensors"):
        engine.run_on_device({"picture": on_gpu(gpu, images)})
    with pytest.raises(InputError, match="does not fit"):
        engine.run_on_device({"image": on_gpu(gpu, images.astype(np.float64))})
    with pytest.raises(InputError, match="1x3x2x2 to 2x3x16x16"):
        engine.run_on_device({"image": on_gpu(gpu, picture(4, 17))})


def test_contexts_share_the_engine_and_nothing_else(gpu):
    runtime = TensorRtEngine(TENSORRT, SimulatedEngine(gpu), Cuda(gpu), None, RuntimeOptions(), "simulated GPU")
    pool = RuntimePool(runtime, 3)
    pictures = [picture(4, 4 + index % 3, index) for index in range(12)]
    with ExitStack() as stack:
        # One after the other: the simulator itself is no thread's friend.
        borrowed = [stack.enter_context(pool.borrowed()) for _ in range(3)]
        for index, each in enumerate(pictures):
            np.testing.assert_array_equal(borrowed[index % 3].upscale(each), doubled(each))
        assert len({int(each._stream.handle) for each in borrowed}) == 3
    pool.close()
    del borrowed, each
    gc.collect()
    assert not gpu.memory


def test_what_a_shape_takes_is_told(engine):
    assert engine.describe()["context_memory_mib"] == 3


def test_layers_are_timed_beside_what_is_bound(engine):
    images = picture(4, 6)
    before = engine.upscale(images)
    assert engine.layer_times_ms({"image": images}, runs=4) == {"rows": 0.5, "columns": 1.5}
    np.testing.assert_array_equal(engine.upscale(images), before)
    with pytest.raises(InputError, match="1x3x2x2 to 2x3x16x16"):
        engine.layer_times_ms({"image": picture(4, 17)}, runs=4)


def test_threads_may_share_one_context(engine):
    images = [picture(4 + seed, 6, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(pool.map(engine.upscale, images * 5)):
            np.testing.assert_array_equal(result, doubled(images[index % 4]))
