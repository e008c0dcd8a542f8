"""Work that overlaps: each stage of a pipeline in a thread of its own, a bounded number of items between them.

>>> for result in map_ahead(upscale, map_ahead(read, paths)):             # doctest: +SKIP
...     write(result)

While one item is written, the next is upscaled and the one after it is read. Decoders, encoders and runtimes leave
Python's lock while they work, so that threads suffice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_POLL_S = 0.1
_here = threading.local()
"""`stopped` of the stage whose thread this is."""


class _UnwantedError(BaseException):
    """Ends a stage's work in the middle of an item; no handler of errors is meant to hold it up."""


def go_on_if_wanted() -> None:
    """To call between the parts of an item that takes long: ends the work where the stage around it was closed."""
    stopped: threading.Event | None = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise _UnwantedError


class _End:
    """What the thread hands over last: how it ended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[_Item], *, depth: int = 2) -> Generator[_Item]:
    """`map_ahead` for `items` that are computed as they are iterated, such as those of a generator."""
    return map_ahead(lambda item: item, items, depth=depth)


def map_ahead(work: Callable[[_Item], _Result], items: Iterable[_Item], *, depth: int = 2) -> Generator[_Result]:
    """Yield `work(item)` for each of `items` in order, while a thread of its own already computes the next ones.

    Closing the generator, or an exception in the loop around it, ends the thread and closes `items` before it returns:
    after the item at hand, or where `work` calls `go_on_if_wanted`.

    Args:
        work: called in the thread.
        items: iterated in the thread, from the first `next` on. A generator is also closed there.
        depth: results that may be ready and waiting; with the ones both sides are at, `depth + 2` are held at a time.

    Raises:
        Whatever `items` or `work` raise, after the results that came before.
    """
    ready: Queue[_Result | _End] = Queue(maxsize=depth)
    stopped = threading.Event()

    def hand_over(item: _Result | _End) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return
            except Full:
                continue

    def run() -> None:
        _here.stopped = stopped
        try:
            for item in items:
                hand_over(work(item))
                if stopped.is_set():
                    break
            end = _End()
        except BaseException as error:
            end = _End(error)
        finally:
            if isinstance(items, Generator):
                items.close()
        hand_over(end)

    thread = threading.Thread(target=run, daemon=True, name="odm-deploy pipeline")
    thread.start()
    try:
        while True:
            item = _next(ready)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def _next(ready: Queue[_Result | _End]) -> _Result | _End:
    """The next item. Waits in steps: a wait without end would be deaf to Ctrl-C on some systems."""
    while True:
        try:
            return ready.get(timeout=_POLL_S)
        except Empty:
            continue
