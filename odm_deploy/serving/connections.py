"""Connections that nobody can hold for nothing: how long a request's head may take, and how many may be open.

uvicorn waits for ever for the rest of a head. A few hundred clients that never send it would take all files a process
may open, and the failing `accept` fills a log.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""Seconds from the first byte of a connection or request to the end of its head."""


def most_connections(*, at_most: int = 512) -> int:
    """How many connections may be open: half of the files this process may open, so that `accept` never fails."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return at_most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return at_most if soft == resource.RLIM_INFINITY else max(min(at_most, soft // 2), 8)


class BoundedConnection(H11Protocol):
    """A connection of uvicorn that is closed where its request's head does not come.

    Where as many are open as may be, the one that has waited longest for its head is closed for the new one; if none
    waits for that, the new one is.
    """

    most = most_connections()
    head_s = HEAD_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            others = (each for each in self.connections if isinstance(each, BoundedConnection) and each is not self)
            waiting = [each for each in others if each._timer is not None]
            if not waiting:
                self.transport.abort()
                return
            min(waiting, key=_since).transport.abort()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take in bytes; whether a head is still awaited is clear afterwards."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            # The next request of a connection that was kept alive.
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.head_s, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _since(connection: BoundedConnection) -> float:
    timer = connection._timer  # pyright: ignore[reportPrivateUsage] - another object of the class
    return float("inf") if timer is None else timer.when()
