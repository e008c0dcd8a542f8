"""Ctrl-C and SIGTERM as a wish: the iteration in progress is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Generator[threading.Event, None, None]:
    """Yield an event that the first Ctrl-C (or SIGTERM) sets; the second one interrupts at once."""
    requested = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    # Signals can only be handled in the main thread; elsewhere the caller handles them.
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
