"""The GPU's state while something is timed: clocks, what throttles them, temperature, power, memory in use.

Asked from NVIDIA's management library by its own binding (`pynvml`, of the package nvidia-ml-py).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from odm_deploy.errors import MissingError
from odm_deploy.machine.gpus import Gpu, find_gpus, primary_context

Value = TypeVar("Value")

_INTERVAL_S = 0.05
# Why clocks are lower than asked for: the end of a name in `nvmlClocksEventReason...` -> what users read.
_THROTTLES = {
    "ApplicationsClocksSetting": "application clocks",
    "SwPowerCap": "software power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "software thermal slowdown",
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "hardware power brake",
}


@dataclass(frozen=True)
class GpuSample:
    """The GPU at one moment; None where it does not tell."""

    sm_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    used_mib: int | None
    """Memory in use by all processes."""
    throttles: tuple[str, ...]


@dataclass(frozen=True)
class GpuState:
    """The GPU over a stretch of time."""

    sm_clock_mhz: tuple[int, int] | None
    """Lowest and highest clock of the multiprocessors."""
    max_temperature_c: int | None
    max_power_w: float | None
    memory_mib: int | None
    """Memory that the model took beside the CUDA context, as long as no other process took any meanwhile."""
    throttles: tuple[str, ...]
    """What lowered the clocks at any moment."""

    @classmethod
    def of(cls, samples: Sequence[GpuSample], memory_mib: int | None) -> GpuState:
        """Summarise samples."""
        clocks = [each.sm_clock_mhz for each in samples if each.sm_clock_mhz is not None]
        return cls(
            (min(clocks), max(clocks)) if clocks else None,
            max((each.temperature_c for each in samples if each.temperature_c is not None), default=None),
            max((each.power_w for each in samples if each.power_w is not None), default=None),
            memory_mib,
            tuple(sorted({reason for each in samples for reason in each.throttles})),
        )


class GpuSensors:
    """What NVIDIA's management library tells about one GPU."""

    def __init__(self, gpu: Gpu) -> None:
        """Find the GPU by its UUID: the library counts all GPUs, CUDA those that CUDA_VISIBLE_DEVICES leaves visible.

        Raises:
            MissingError: nvidia-ml-py is not installed, or the library does not know the GPU.
        """
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            why = "nvidia-ml-py is not installed"
            raise MissingError("the state of the GPU is unknown", why=why, fix="pip install nvidia-ml-py") from error
        try:
            self._nvml.nvmlInit()
            self._device: Any = self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        except self._nvml.NVMLError as error:
            raise MissingError("the state of the GPU is unknown", why=str(error)) from error

    def sample(self) -> GpuSample:
        """The state of the GPU now."""
        nvml, device = self._nvml, self._device
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(device))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(device))
        return GpuSample(
            self._ask(lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
            self._ask(lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)),
            None if power_mw is None else power_mw / 1e3,
            None if memory is None else memory.used >> 20,
            # By its older name, which drivers and bindings of every age have.
            self._reasons(self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)) or 0),
        )

    def _ask(self, query: Callable[[], Value]) -> Value | None:
        """The answer to a query; None where the GPU, or the driver, does not support it."""
        try:
            return query()
        except self._nvml.NVMLError:
            return None

    def _reasons(self, bits: int) -> tuple[str, ...]:
        if bits & self._nvml.nvmlClocksThrottleReasonGpuIdle:
            return ()
        names = _THROTTLES.items()
        return tuple(name for reason, name in names if bits & getattr(self._nvml, f"nvmlClocksThrottleReason{reason}"))


class GpuWatch:
    """Samples a GPU from a thread of its own."""

    def __init__(self, gpu: Gpu) -> None:
        """Begin. Raises as `GpuSensors`."""
        self._sensors = GpuSensors(gpu)
        self._before = self._sensors.sample()
        self._memory_mib: int | None = None
        self._samples: list[GpuSample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._samples.append(self._sensors.sample())

    def model_is_ready(self) -> None:
        """Take the memory in use now, less what was in use at the start, for the model's."""
        now = self._sensors.sample()
        if now.used_mib is not None and self._before.used_mib is not None:
            self._memory_mib = now.used_mib - self._before.used_mib

    def timing_begins(self) -> None:
        """Forget the clocks, temperatures and throttling of what came before."""
        self._samples.clear()

    def finish(self) -> GpuState:
        """Stop sampling and say what was seen."""
        self._stop.set()
        self._thread.join()
        return GpuState.of([*self._samples, self._sensors.sample()], self._memory_mib)


@contextmanager
def watch_gpu() -> Generator[tuple[GpuWatch | None, str]]:
    """Watch the GPU that runtimes compute on: CUDA's first. None, and why, where it cannot be; "" without a GPU."""
    watch, note = None, ""
    with ExitStack() as stack:
        for gpu in find_gpus()[:1]:
            # There before memory is first looked at, or the model would seem to need it.
            stack.enter_context(primary_context(gpu))
            try:
                watch = GpuWatch(gpu)
            except MissingError as error:
                note = str(error)
            else:
                stack.callback(watch.finish)
        yield watch, note
