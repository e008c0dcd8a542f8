"""What `benchmark` measures on a GPU, and in which order; the GPU is simulated. On a real one: tests/gpu."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odm_deploy.bench import benchmark as module
from odm_deploy.bench.gpu_watch import GpuState
from odm_deploy.bench.steadiness import Timing
from odm_deploy.bench.timing import Effort
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import TensorInfo
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.profiles import image_shapes
from tests.simulated_gpu import BEST, LARGEST, SMALLEST, TENSORRT, SimulatedCuda, SimulatedEngine
from tests.sr_graphs import sr_model

pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
FEEDS = {"image": np.ones(BEST, np.float32)}


def simulated(gpu: SimulatedCuda) -> TensorRtEngine:
    return TensorRtEngine(TENSORRT, SimulatedEngine(gpu), Cuda(gpu), None, RuntimeOptions(), "simulated GPU")


def test_runs_are_queued_one_behind_the_other() -> None:
    gpu = SimulatedCuda()
    with simulated(gpu) as engine:
        before = engine.upscale(FEEDS["image"])
        # The simulated GPU says 0.25 ms between any two events.
        assert engine.back_to_back_ms(FEEDS, 5) == 0.05
        np.testing.assert_array_equal(engine.upscale(FEEDS["image"]), before)
    assert not gpu.memory


def test_memory_is_read_before_the_twin_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, diary = SimulatedCuda(), list[str]()

    class Watch:
        def model_is_ready(self) -> None:
            diary.append("memory is read")

        def timing_begins(self) -> None:
            diary.append("timing begins")

        def finish(self) -> GpuState:
            return GpuState(None, None, None, 5, ())

    @contextmanager
    def watch_gpu() -> Generator[tuple[Any, str]]:
        yield Watch(), ""

    def open_runtime(*_: Any) -> TensorRtEngine:
        diary.append("model is opened")
        return simulated(gpu)

    def open_twin(*_: Any) -> tuple[TensorRtEngine, str]:
        diary.append("twin is opened")
        return simulated(gpu), "float twin (fp16)"

    for name, function in (("watch_gpu", watch_gpu), ("open_runtime", open_runtime), ("open_twin", open_twin)):
        monkeypatch.setattr(module, name, function)
    (tmp_path / "model.onnx").write_bytes(sr_model().SerializeToString())
    report = module.benchmark(tmp_path / "model.onnx", effort=Effort(iterations=10))
    assert diary == ["model is opened", "memory is read", "twin is opened", "timing begins"]
    assert report.measurement.back_to_back_ms == 0.25 / 10
    assert report.back_to_back_speedup == 1.0
    assert report.to_dict()["baseline"]["back_to_back_ms"] == 0.25 / 10
    assert report.gpu is not None
    assert report.gpu.memory_mib == 5


@pytest.mark.parametrize(
    ("mine", "at_best"),
    [
        pytest.param([50.0, 95.0] * 6, 4.0, id="two speeds"),
        pytest.param([50.0 + step for step in range(0, 120, 10)], None, id="drift"),
        pytest.param([50.0] * 12, None, id="steady"),
    ],
)
def test_an_unsteady_ratio_is_told_at_best_where_the_fastest_runs_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: list[float], at_best: float | None
) -> None:
    timing = Timing([RunTimes(ms) for ms in mine], [RunTimes(200.0) for _ in mine])
    monkeypatch.setattr(module, "time_steadily", lambda *_, **__: [timing, timing])
    monkeypatch.setattr(module, "open_runtime", lambda *_: simulated(SimulatedCuda()))
    (tmp_path / "model.onnx").write_bytes(sr_model().SerializeToString())
    monkeypatch.setattr(module, "open_twin", lambda *_: (simulated(SimulatedCuda()), "float twin (fp16)"))
    assert module.benchmark(tmp_path / "model.onnx").speedup_at_best == at_best
    # Without a twin there is no ratio.
    assert module.benchmark(tmp_path / "model.onnx", baseline=False).speedup_at_best is None


def test_a_twin_is_built_for_the_profile_that_its_model_runs_in() -> None:
    with simulated(SimulatedCuda()) as engine:
        assert engine.image_shapes((1, 3, 8, 6)) == InputShapes(SMALLEST, BEST, LARGEST)


def test_profiles_of_bytes_laid_out_by_pixel_are_told_by_channel() -> None:
    class Engine:
        def get_tensor_profile_shape(self, _name: str, _profile: int) -> tuple[tuple[int, ...], ...]:
            return (1, 16, 20, 3), (1, 32, 40, 3), (2, 64, 80, 3)

    source = TensorInfo("image", np.dtype(np.uint8), (None, None, None, 3))
    expected = InputShapes((1, 3, 16, 20), (1, 3, 32, 40), (2, 3, 64, 80))
    assert image_shapes(Engine(), source, 0) == expected
