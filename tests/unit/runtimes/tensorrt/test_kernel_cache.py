"""Compiled kernels of TensorRT for RTX live on in a file. On a real GPU: tests/gpu."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.kernel_cache import FOLDER_VARIABLE
from odm_deploy.runtimes.tensorrt.rtx_engine import TensorRtRtxEngine
from tests.simulated_gpu import (
    TENSORRT_RTX,
    SimulatedCuda,
    SimulatedKernelCache,
    SimulatedRtxEngine,
    SimulatedRuntimeConfig,
)

pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


def kernels_compiled(cache: Path | None, gpu: bytes = b"RTX 4090", contexts: int = 1) -> int:
    """How many kernels a process compiles that runs two shapes and closes its engine."""
    cuda = SimulatedCuda()
    engine = SimulatedRtxEngine(cuda, gpu)
    options = RuntimeOptions(kernel_cache=cache)
    first = TensorRtRtxEngine(TENSORRT_RTX, engine, Cuda(cuda), None, options, "simulated GPU")
    for runtime in [first, *(first.another() for _ in range(contexts - 1))]:
        with runtime:
            for side in (4, 6):
                images = np.ones((1, 3, side, side), np.float32)
                np.testing.assert_array_equal(runtime.upscale(images), np.ones((1, 3, 2 * side, 2 * side)))
    return engine.compiled


def test_the_next_process_compiles_nothing(tmp_path):
    cache = tmp_path / "new" / "engine.cache"
    assert kernels_compiled(cache) == 10
    assert kernels_compiled(cache) == 0
    assert [path.name for path in cache.parent.iterdir()] == ["engine.cache"]


def test_without_a_cache_every_context_compiles_anew():
    assert kernels_compiled(None) == 20


def test_contexts_share_it(tmp_path):
    assert kernels_compiled(tmp_path / "engine.cache", contexts=3) == 10


def test_what_another_gpu_or_an_accident_left_is_replaced(tmp_path):
    cache = tmp_path / "engine.cache"
    kernels_compiled(cache, b"RTX 3060")
    for content in (cache.read_bytes(), b"", b"garbage"):
        cache.write_bytes(content)
        assert kernels_compiled(cache) == 10
        assert kernels_compiled(cache) == 0


def test_unchanged_contents_are_not_written_again(tmp_path):
    cache = tmp_path / "engine.cache"
    kernels_compiled(cache)
    before = cache.stat()
    kernels_compiled(cache)
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    folder = tmp_path / "engine.cache"
    folder.mkdir()
    assert kernels_compiled(folder) == 10
    (tmp_path / "file").write_text("")
    assert kernels_compiled(tmp_path / "file" / "engine.cache") == 10


def test_the_environment_names_a_folder_with_a_file_for_each_plan(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "kernels"))
    files = [TensorRtRtxEngine._options_for(plan, RuntimeOptions()).kernel_cache for plan in (b"one", b"two", b"one")]
    assert files[0] == files[2] != files[1]
    assert {file.parent for file in files} == {tmp_path / "kernels"}
    assert kernels_compiled(files[0]) == 10
    assert kernels_compiled(files[2]) == 0


def test_options_win_over_the_environment_and_other_builders_have_no_kernels(tmp_path, monkeypatch):
    named = RuntimeOptions(threads=2, kernel_cache=tmp_path / "mine")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert TensorRtRtxEngine._options_for(b"plan", RuntimeOptions()) == RuntimeOptions()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert TensorRtRtxEngine._options_for(b"plan", named) == named
    assert TensorRtEngine._options_for(b"plan", RuntimeOptions()) == RuntimeOptions()


def test_the_simulated_names_are_those_of_the_real_library():
    trt = pytest.importorskip("tensorrt_rtx")
    for simulated, real in (
        (SimulatedKernelCache, trt.IRuntimeCache),
        (SimulatedRuntimeConfig, trt.IRuntimeConfig),
        (SimulatedRtxEngine, trt.ICudaEngine),
    ):
        names = {name for name, _ in inspect.getmembers(simulated, inspect.isfunction) if not name.startswith("_")}
        assert names <= set(dir(real))
    assert "bool" in trt.IRuntimeCache.deserialize.__doc__
    assert {"WHOLE_GRAPH_CAPTURE", "DISABLED"} <= set(trt.CudaGraphStrategy.__members__)
    assert "EAGER" in trt.DynamicShapesKernelSpecializationStrategy.__members__
