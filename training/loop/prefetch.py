"""Prepare the next batches in a thread while the current one trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 3) -> Generator[Iterator[T], None, None]:
    """Yield an iterator over `make(start), ..., make(stop - 1)`, made in a thread at most `depth` ahead.

    An exception in `make` is raised where its item would have been. Leaving the context ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    done = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not done.is_set():
            with suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def work() -> None:
        for index in range(start, stop):
            if done.is_set():
                return
            try:
                item = make(index)
            except BaseException as error:
                put(None, error)
                return
            put(item, None)

    def items() -> Iterator[T]:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        done.set()
        thread.join()
