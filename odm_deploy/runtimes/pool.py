"""Several runtimes on one loaded model, lent to one user each."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from queue import LifoQueue

from odm_deploy.closable import Closable
from odm_deploy.runtimes.base import Runtime


class RuntimePool(Closable):
    """As many runtimes as runs may be under way at once. Threads may share a pool, and close it from any of them."""

    def __init__(self, runtime: Runtime, count: int) -> None:
        """Make `count - 1` more of `runtime`, which the pool closes from now on."""
        self._runtimes = [runtime, *(runtime.another() for _ in range(count - 1))]
        # The one used last first: it has the shapes of the last images bound.
        self._idle: LifoQueue[Runtime] = LifoQueue()
        for each in self._runtimes:
            self._idle.put(each)

    @contextmanager
    def borrowed(self) -> Generator[Runtime]:
        """A runtime nobody else uses meanwhile; waits for one."""
        runtime = self._idle.get()
        try:
            yield runtime
        finally:
            self._idle.put(runtime)

    def close(self) -> None:
        """Close them all. Runs under way are finished first; later ones are refused."""
        for runtime in self._runtimes:
            runtime.close()
