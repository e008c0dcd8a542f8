"""What TensorRT reports while it works, to subclasses of its own classes; its module is known on opening an engine."""

from __future__ import annotations

from typing import Any


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps the last error for our own message instead of printing it."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "TensorRT gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message.strip()

    return Log()


def make_layer_timer(trt: Any) -> Any:
    """A TensorRT profiler that adds up the milliseconds of each layer, in the order of the engine."""

    class LayerTimer(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] = self.total_ms.get(layer_name, 0.0) + ms

    return LayerTimer()
