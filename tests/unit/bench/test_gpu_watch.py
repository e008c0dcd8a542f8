"""What is asked of NVIDIA's management library, of which GPU, and what becomes of the answers. Real ones: tests/gpu."""

from __future__ import annotations

import importlib
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from odm_deploy.bench.gpu_watch import GpuSample, GpuSensors, GpuState, GpuWatch, watch_gpu
from odm_deploy.errors import MissingError
from odm_deploy.machine.gpus import Gpu, find_gpus

GPU = Gpu(0, "NVIDIA Two", (8, 9), 24576, "GPU-00000000-0000-0000-0000-000000000002")
QUERIES = ("ClockInfo", "Temperature", "PowerUsage", "MemoryInfo", "CurrentClocksThrottleReasons")


class FakeNvml:
    """Stands in for `pynvml` on a machine with two GPUs; constants and the error class are the real ones."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.real: Any = importlib.import_module("pynvml")
        self.answers = answers
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        query = name.removeprefix("nvmlDeviceGet")
        if query == name or query == "HandleByUUID":
            return getattr(self.real, name)
        assert query in QUERIES
        assert callable(getattr(self.real, name))
        return lambda device, *_: self._answer(device, query)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("GPU-"):
            raise self.real.NVMLError(self.real.NVML_ERROR_NOT_FOUND)
        return uuid

    def _answer(self, device: str, query: str) -> Any:
        self.asked.add(device)
        if query not in self.answers:
            raise self.real.NVMLError(self.real.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(used=self.answers[query]) if query == "MemoryInfo" else self.answers[query]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the library answer these queries, by name, and no others."""

    def install(**answers: int) -> FakeNvml:
        fake = FakeNvml(answers)
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # pyright: ignore[reportArgumentType]
        return fake

    return install


def test_answers_are_read_in_their_units(answering: Any) -> None:
    answering(
        ClockInfo=1980, Temperature=61, PowerUsage=301_500, MemoryInfo=5 << 30, CurrentClocksThrottleReasons=0x4 | 0x40
    )
    throttles = ("software power cap", "hardware thermal slowdown")
    assert GpuSensors(GPU).sample() == GpuSample(1980, 61, 301.5, 5 << 10, throttles)


def test_idle_is_no_throttling_and_silence_no_number(answering: Any) -> None:
    answering(CurrentClocksThrottleReasons=0x1 | 0x4)
    assert GpuSensors(GPU).sample() == GpuSample(None, None, None, None, ())


def test_the_gpu_is_found_by_its_uuid_and_not_by_its_place(answering: Any) -> None:
    fake = answering(Temperature=61)
    GpuSensors(GPU).sample()
    assert fake.asked == {GPU.uuid}


def test_a_gpu_that_the_library_does_not_know_is_said(answering: Any) -> None:
    answering()
    with pytest.raises(MissingError, match=r"state of the GPU is unknown.*Not Found"):
        GpuSensors(Gpu(0, "NVIDIA One", (8, 6), 1))


def test_a_stretch_of_time_is_summed_up() -> None:
    samples = [GpuSample(1400, 50, 200.0, 900, ()), GpuSample(1980, 66, None, 950, ("software power cap",))]
    assert GpuState.of(samples, 120) == GpuState((1400, 1980), 66, 200.0, 120, ("software power cap",))
    silent = [GpuSample(None, None, None, None, ())]
    assert GpuState.of(silent, None) == GpuState(None, None, None, None, ())


def test_memory_is_the_models_and_clocks_are_those_of_the_timing(answering: Any) -> None:
    fake = answering(ClockInfo=300, MemoryInfo=100 << 20)
    watch = GpuWatch(GPU)
    fake.answers = {"ClockInfo": 1980, "MemoryInfo": 340 << 20}
    watch.model_is_ready()
    # The twin, opened later, is none of the model's needs.
    fake.answers = {"ClockInfo": 1980, "MemoryInfo": 900 << 20}
    watch.timing_begins()
    time.sleep(0.12)
    state = watch.finish()
    assert (state.memory_mib, state.sm_clock_mhz) == (240, (1980, 1980))
    assert watch.finish() == state


def test_without_the_binding_one_note_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("odm_deploy.bench.gpu_watch.find_gpus", lambda: (GPU,))
    with watch_gpu() as (watch, note):
        assert watch is None
        assert "pip install nvidia-ml-py" in note


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_nothing_is_watched_and_nothing_missed() -> None:
    with watch_gpu() as (watch, note):
        assert watch is None
        assert note == ""
