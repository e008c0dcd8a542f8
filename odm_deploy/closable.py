"""What holds a model or a device, and lets it go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closable(ABC):
    """Something to `close`, or to use as a context manager, which then does."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held. Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
