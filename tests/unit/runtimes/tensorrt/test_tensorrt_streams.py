"""On which stream an engine computes, and what it says when TensorRT answers no. On a real GPU: tests/gpu."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from odm_deploy.errors import OdmError
from odm_deploy.runtimes.dlpack import CUDA
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.device_tensors import DeviceArray
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.rtx_engine import TensorRtRtxEngine
from tests.simulated_gpu import (
    DEFAULT_STREAMS,
    TENSORRT,
    TENSORRT_RTX,
    SimulatedCuda,
    SimulatedEngine,
    SimulatedRtxEngine,
)

pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
IMAGES = np.arange(96, dtype=np.float32).reshape(1, 3, 4, 8)


def open_engine(gpu: SimulatedCuda, engine: SimulatedEngine) -> TensorRtEngine:
    return TensorRtEngine(TENSORRT, engine, Cuda(gpu), None, RuntimeOptions(), "simulated GPU")


def open_rtx_engine(gpu: SimulatedCuda, engine: SimulatedEngine) -> TensorRtEngine:
    return TensorRtRtxEngine(TENSORRT_RTX, engine, Cuda(gpu), None, RuntimeOptions(), "simulated GPU")


@pytest.mark.parametrize("handle", DEFAULT_STREAMS)
def test_tensors_on_a_default_stream_are_computed_on_the_engines_own(handle: int) -> None:
    gpu = SimulatedCuda()
    pointer = gpu._cudaMalloc(IMAGES.nbytes)
    source = DeviceArray(pointer, IMAGES.shape, IMAGES.dtype, (CUDA, 0), gpu._cudaFree)
    with open_engine(gpu, SimulatedEngine(gpu)) as engine:
        # The input is still being written on the caller's stream when the engine is called.
        gpu.queue(handle, lambda: ctypes.memmove(pointer, IMAGES.ctypes.data, IMAGES.nbytes) and None)
        result = engine.run_on_device({"image": source}, stream=handle)["sr"]
        assert gpu.launches == {int(engine._stream.handle)}
        # What the caller queues next sees the result, though nobody waited on the host.
        seen: list[bytes] = []
        gpu.queue(handle, lambda: seen.append(ctypes.string_at(result.pointer, 4 * IMAGES.nbytes)))
        assert not seen
        gpu._cudaStreamSynchronize(handle)
        np.testing.assert_array_equal(np.frombuffer(seen[0], np.float32), IMAGES.repeat(2, 2).repeat(2, 3).ravel())


@pytest.mark.parametrize(("refused", "words"), [("profile", "profile 0"), ("shape", "'image'"), ("memory", "memory")])
def test_what_tensorrt_does_not_take_is_no_wrong_result(refused: str, words: str) -> None:
    gpu = SimulatedCuda()
    engine = SimulatedEngine(gpu)
    engine.refused = refused
    with open_engine(gpu, engine) as runtime, pytest.raises(OdmError, match=f"TensorRT does not take .*{words}"):
        runtime.upscale(IMAGES)
    assert not gpu.memory


def test_a_failed_capture_is_told_and_costs_no_result() -> None:
    gpu = SimulatedCuda()
    engine = SimulatedEngine(gpu)
    engine.capturable = False
    with open_engine(gpu, engine) as runtime:
        assert runtime.describe()["cuda_graph"] is True
        np.testing.assert_array_equal(runtime.upscale(IMAGES), IMAGES.repeat(2, 2).repeat(2, 3))
        assert runtime.describe()["cuda_graph"] is False
        assert "without a CUDA graph: TensorRT could not run the engine" in runtime.speed_note


@pytest.mark.parametrize("capturable", [True, False])
def test_an_engine_that_captures_by_itself_says_whether_it_does(capturable: bool) -> None:
    gpu = SimulatedCuda()
    engine = SimulatedRtxEngine(gpu, b"RTX 4090")
    engine.capturable = capturable
    with open_rtx_engine(gpu, engine) as runtime:
        runtime.upscale(IMAGES)
        assert not gpu.launches
        assert runtime.describe()["cuda_graph"] is capturable
        assert bool(runtime.speed_note) is not capturable


def test_the_configuration_of_a_context_lives_as_long_as_the_engine() -> None:
    gpu = SimulatedCuda()
    engine = SimulatedRtxEngine(gpu, b"RTX 4090")
    with open_rtx_engine(gpu, engine) as runtime, runtime.another() as other:
        for each in (runtime, other):
            each.upscale(IMAGES)
            each.upscale(IMAGES[:, :, :2])
        assert [config() is None for config in engine.configs] == [False]
    assert [config() is None for config in engine.configs] == [True]
