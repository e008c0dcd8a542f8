"""The GPU's state while something is timed: clocks, what throttles them, temperature, power, memory in use.

Asked from NVIDIA's management library (libnvidia-ml, part of the driver) by ctypes: nothing has to be installed.
Constants and signatures: nvml.h, "Device Queries".
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_CLOCK_SM = 1
_SENSOR_GPU = 0
_INTERVAL_S = 0.05
_IDLE = 0x1
# nvmlClocksEventReason*: why clocks are lower than asked for.
_THROTTLES = {
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


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
    """Memory that the model took, as long as no other process took any meanwhile."""
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


class Nvml:
    """NVIDIA's management library, looking at the first GPU."""

    def __init__(self, library: Any) -> None:
        """Wrap the loaded library. Most callers want `load`."""
        self._library = library
        self._device = ctypes.c_void_p()

    @classmethod
    def load(cls) -> Nvml | None:
        """The library of this machine's driver; None without driver or GPU."""
        try:
            library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        except OSError:
            return None
        return cls(library).started()

    def started(self) -> Nvml | None:
        """Initialize the library and find the GPU; None where that fails."""
        first = self._library.nvmlInit_v2() == 0
        return self if first and self._ask("nvmlDeviceGetHandleByIndex_v2", 0, self._device) else None

    def sample(self) -> GpuSample:
        """The state of the GPU now."""
        clock, temperature, milliwatts = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        reasons, memory = ctypes.c_ulonglong(), _Memory()
        device = self._device
        return GpuSample(
            clock.value if self._ask("nvmlDeviceGetClockInfo", device, _CLOCK_SM, clock) else None,
            temperature.value if self._ask("nvmlDeviceGetTemperature", device, _SENSOR_GPU, temperature) else None,
            milliwatts.value / 1e3 if self._ask("nvmlDeviceGetPowerUsage", device, milliwatts) else None,
            memory.used >> 20 if self._ask("nvmlDeviceGetMemoryInfo", device, memory) else None,
            _reasons(reasons.value) if self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", device, reasons) else (),
        )

    def _ask(self, function: str, *arguments: Any) -> bool:
        """Call a query whose last argument is filled in; False where the GPU, or the driver, does not support it."""
        *inputs, output = arguments
        query = getattr(self._library, function, None)
        return query is not None and query(*inputs, ctypes.byref(output)) == 0


class GpuWatch:
    """Samples the GPU from a thread of its own."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._before = nvml.sample()
        self._memory_mib: int | None = None
        self._samples: list[GpuSample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._samples.append(self._nvml.sample())

    def model_is_ready(self) -> None:
        """Take the memory in use now, less what was in use at the start, for the model's. From here on it is timed."""
        now = self._nvml.sample()
        if now.used_mib is not None and self._before.used_mib is not None:
            self._memory_mib = now.used_mib - self._before.used_mib
        self._samples.clear()

    def finish(self) -> GpuState:
        """Stop sampling and say what was seen."""
        self._stop.set()
        self._thread.join()
        return GpuState.of([*self._samples, self._nvml.sample()], self._memory_mib)


@contextmanager
def watch_gpu() -> Generator[GpuWatch | None]:
    """Watch the first GPU; None where there is none."""
    nvml = Nvml.load()
    watch = None if nvml is None else GpuWatch(nvml)
    try:
        yield watch
    finally:
        if watch is not None:
            watch.finish()


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLES.items() if bits & bit and not bits & _IDLE)
