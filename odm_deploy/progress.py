"""What long work tells meanwhile: lines of talk, and how far it has come. Libraries are handed both and never print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

Say = Callable[[str], None]
"""Takes a line of talk."""


class Track(Protocol):
    """Shows progress while items are consumed, as what `terminal.progress` yields does."""

    def __call__(self, items: Iterable[T], total: int, stage: str = ...) -> Iterator[T]:
        """Hand on `items`, of which there are `total`; `stage` names the work where there are several kinds."""
        ...


def silent(_: str) -> None:
    """Drops what is said."""


def untracked(items: Iterable[T], total: int, stage: str = "") -> Iterator[T]:
    """Hands on the items and shows nothing."""
    del total, stage
    return iter(items)
