"""Work that overlaps: each stage of a pipeline in threads of its own, a bounded number of items between them.

>>> for result in map_ahead(upscale, map_ahead(read, paths)):             # doctest: +SKIP
...     write(result)

While one item is written, the next is upscaled and the one after it is read. Decoders, encoders and runtimes leave
Python's lock while they work, so that threads suffice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, Full, Queue
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_POLL_S = 0.1


class _End:
    """What the thread hands over last: how it ended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[_Item], *, depth: int = 2) -> Generator[_Item]:
    """`map_ahead` for `items` that are computed as they are iterated, such as those of a generator."""
    return map_ahead(lambda item: item, items, depth=depth)


def map_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int = 1, depth: int = 2
) -> Generator[_Result]:
    """Yield `work(item)` for each of `items` in order, while threads of its own already compute the next ones.

    Closing the generator, or an exception in the loop around it, ends the threads and closes `items` before it returns.

    Args:
        work: called in `workers` threads.
        items: iterated in another thread, from the first `next` on. A generator is also closed there.
        workers: how many items are worked on at once.
        depth: results that may be ready and waiting beyond one for each worker.

    Raises:
        Whatever `items` or `work` raise, after the results that came before.
    """
    # In the order of the items; the consumer waits for the results.
    begun: Queue[Future[_Result] | _End] = Queue(maxsize=depth + workers - 1)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, "odm-deploy worker")

    def hand_over(future: Future[_Result] | _End) -> None:
        while not stopped.is_set():
            try:
                begun.put(future, timeout=_POLL_S)
                return
            except Full:
                continue

    def run() -> None:
        try:
            for item in items:
                hand_over(pool.submit(work, item))
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
            future = _next(begun)
            if isinstance(future, _End):
                if future.error is not None:
                    raise future.error
                return
            yield _result(future)
    finally:
        stopped.set()
        thread.join()
        pool.shutdown(cancel_futures=True)


def _next(begun: Queue[_Item]) -> _Item:
    """The next item. Waits in steps: a wait without end would be deaf to Ctrl-C on some systems."""
    while True:
        try:
            return begun.get(timeout=_POLL_S)
        except Empty:
            continue


def _result(future: Future[_Result]) -> _Result:
    """What a future comes to; waits in steps, as `_next`."""
    while not wait([future], timeout=_POLL_S).done:
        continue
    return future.result()
