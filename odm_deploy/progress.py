"""What long work tells meanwhile: lines of talk, and how far it has come. Libraries are handed both and never print."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def steps(track: Track, parts: Sequence[int], stage: str) -> Generator[Callable[[], None]]:
    """Work of a few steps that take these parts of its time; yields what to call when each of them begins."""
    total = sum(parts)
    items = iter(track(range(total), total, PercentStage(stage)))
    next(items, None)
    ahead, under_way = iter(parts), 0

    def begin() -> None:
        nonlocal under_way
        for _ in range(under_way):
            next(items, None)
        under_way = next(ahead, 0)

    try:
        yield begin
        # The last one is over.
        begin()
    finally:
        if isinstance(items, Generator):
            items.close()


def untracked(items: Iterable[T], total: int, stage: str = "") -> Iterator[T]:
    """Hands on the items and shows nothing."""
    del total, stage
    return iter(items)
