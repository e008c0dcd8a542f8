"""What TensorRT says, kept for our own messages."""

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
