"""Work that overlaps: each stage of a pipeline in a thread of its own, a bounded number of items between them.

>>> pictures = ahead(read(path) for path in paths)             # doctest: +SKIP
>>> for result in ahead(upscale(picture) for picture in pictures):
...     write(result)

While one item is written, the next is upscaled and the one after it is read. Decoders, encoders and runtimes leave
Python's lock while they work, so that threads suffice.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

_T = TypeVar("_T")

_POLL_S = 0.1


class _End:
    """What the thread hands over last: how it ended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[_T], depth: int = 2) -> Generator[_T]:
    """Yield `items` as they come, while a thread of its own already computes the next ones.

    Closing the generator, or an exception in the loop around it, ends the thread and closes `items` before it returns.

    Args:
        items: iterated in the thread, from the first `next` on. A generator is also closed there.
        depth: items that may be ready and waiting; with the ones both sides are at, `depth + 2` are held at a time.

    Raises:
        Whatever `items` raises, behind the items that came before.
    """
    ready: Queue[_T | _End] = Queue(maxsize=depth)
    stopped = threading.Event()

    def hand_over(item: _T | _End) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if stopped.is_set():
                    break
            end = _End()
        except BaseException as error:
            end = _End(error)
        finally:
            if isinstance(items, Generator):
                items.close()
        hand_over(end)

    thread = threading.Thread(target=work, daemon=True, name="odm-deploy pipeline")
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


def _next(ready: Queue[_T | _End]) -> _T | _End:
    """The next item. Waits in steps: a wait without end would be deaf to Ctrl-C on some systems."""
    while True:
        try:
            return ready.get(timeout=_POLL_S)
        except Empty:
            continue
