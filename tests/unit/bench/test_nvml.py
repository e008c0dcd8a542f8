"""How answers of NVIDIA's management library are read. On a real GPU: tests/gpu."""

from __future__ import annotations

import ctypes
import time
from types import SimpleNamespace
from typing import Any

import pytest

from odm_deploy.bench.nvml import GpuSample, GpuState, GpuWatch, Nvml, watch_gpu
from odm_deploy.machine.gpus import find_gpus

UNSUPPORTED = 3


def answering(**values: int) -> SimpleNamespace:
    """A library whose queries fill in these values; the others say that the GPU does not support them."""

    def query(name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name not in values:
                return UNSUPPORTED
            output = arguments[-1]._obj
            if name == "Memory":
                output.used = values[name]
            else:
                output.value = values[name]
            return 0

        return call

    queries = {
        "nvmlDeviceGetClockInfo": "Clock",
        "nvmlDeviceGetTemperature": "Temperature",
        "nvmlDeviceGetPowerUsage": "Power",
        "nvmlDeviceGetMemoryInfo": "Memory",
        "nvmlDeviceGetCurrentClocksThrottleReasons": "Reasons",
    }

    def handle(_: int, output: Any) -> int:
        ctypes.cast(output, ctypes.POINTER(ctypes.c_void_p))[0] = 77
        return 0

    found = {function: query(name) for function, name in queries.items()}
    return SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByIndex_v2=handle, **found)


def test_answers_are_read_in_their_units() -> None:
    nvml = Nvml(answering(Clock=1980, Temperature=61, Power=301_500, Memory=5 << 30, Reasons=0x4 | 0x40)).started()
    assert nvml is not None
    throttles = ("software power cap", "hardware thermal slowdown")
    assert nvml.sample() == GpuSample(1980, 61, 301.5, 5 << 10, throttles)


def test_idle_is_no_throttling_and_silence_no_number() -> None:
    nvml = Nvml(answering(Reasons=0x1)).started()
    assert nvml is not None
    assert nvml.sample() == GpuSample(None, None, None, None, ())


def test_a_library_without_a_gpu_is_no_library() -> None:
    assert Nvml(SimpleNamespace(nvmlInit_v2=lambda: 9)).started() is None
    assert Nvml(SimpleNamespace(nvmlInit_v2=lambda: 0)).started() is None


def test_a_stretch_of_time_is_summed_up() -> None:
    samples = [GpuSample(1400, 50, 200.0, 900, ()), GpuSample(1980, 66, None, 950, ("software power cap",))]
    assert GpuState.of(samples, 120) == GpuState((1400, 1980), 66, 200.0, 120, ("software power cap",))
    silent = [GpuSample(None, None, None, None, ())]
    assert GpuState.of(silent, None) == GpuState(None, None, None, None, ())


def test_memory_is_the_models_and_clocks_are_those_of_the_timing() -> None:
    nvml = Nvml(answering(Clock=300, Memory=100 << 20)).started()
    assert nvml is not None
    watch = GpuWatch(nvml)
    nvml._library = answering(Clock=1980, Memory=340 << 20)
    watch.model_is_ready()
    time.sleep(0.12)
    state = watch.finish()
    assert (state.memory_mib, state.sm_clock_mhz) == (240, (1980, 1980))
    assert watch.finish() == state


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_driver_nothing_is_watched() -> None:
    with watch_gpu() as watch:
        assert watch is None
