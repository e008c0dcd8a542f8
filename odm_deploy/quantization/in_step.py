"""Two computations in step: one hands on its results while the other uses them, and neither runs far ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import Empty, Queue
from typing import TypeVar

Item = TypeVar("Item")


class _Stopped(BaseException):
    """Unwinds a producer whose results nobody wants any more."""


def in_step(produce: Callable[[Callable[[Item], None]], None]) -> Generator[Item]:
    """What `produce` hands to the function it is given, one after the other, while it goes on.

    It runs in a thread of its own and waits where the result before last was not taken yet, so at most two are held
    that nobody has. What it raises is raised here. Ending early stops it at its next result.
    """
    handed: Queue[Item] = Queue(maxsize=1)
    stopped, failures = threading.Event(), list[BaseException]()
    ended = object()

    def put(item: Item) -> None:
        if stopped.is_set():
            raise _Stopped
        handed.put(item)

    def work() -> None:
        try:
            produce(put)
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, it belongs to the caller
            failures.append(error)
        finally:
            handed.put(ended)  # pyright: ignore[reportArgumentType]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := handed.get()) is not ended:
            yield item
        if failures:
            raise failures[0]
    finally:
        stopped.set()
        while thread.is_alive():
            # It may be waiting for room.
            try:
                handed.get(timeout=0.05)
            except Empty:
                continue
        thread.join()
