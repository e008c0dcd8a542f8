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


class PercentStage(str):
    """A stage whose items are nothing that anybody counts, but parts of its work: it is told in percent."""


def silent(_: str) -> None:
    """Drops what is said."""


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def untracked(items: Iterable[T], total: int, stage: str = "") -> Iterator[T]:
    """Hands on the items and shows nothing."""
    del total, stage
    return iter(items)
