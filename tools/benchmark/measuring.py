"""Timing a network's variants: as many at once as fit into memory, each group beside the float network.

All forms of SRResNet at 320x180 together take more than 23 GiB, mostly what runtimes keep for features between layers.
So variants are opened and run once as long as the next one should fit, judged by the largest so far; that group is
timed in alternation and closed, and the next one opened. The float network is in every group, so every ratio is of one
time; what `time_steadily` calls unsteady is timed again within its group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np

from benchmark.memory import available_bytes
from benchmark.variants import Opened, Variant
from odm_deploy.bench.steadiness import Timing, time_steadily
from odm_deploy.bench.timing import Effort
from odm_deploy.errors import OdmError
from odm_deploy.runtimes.tensor_info import Array
from odm_deploy.terminal import say

_MARGIN = 1.5
"""How much more than the largest so far the next variant may need, as compiling it may for a while."""
_RESERVE_BYTES = 1 << 30
"""What is left to the rest of the system."""


def timings(
    variants: Sequence[Variant],
    base: Variant,
    size: tuple[int, int],
    seconds: float,
    available: Callable[[], int | None] = available_bytes,
) -> Iterator[dict[str, Timing]]:
    """Time variants at one size (height, width); yields each group's, by key, as soon as it is known.

    Args:
        variants: what is timed; whether `base` is among them makes no difference.
        base: what they are compared with, timed in every group.
        size: of the image, which is random.
        seconds: for all of them.
        available: tells how many bytes are left.
    """
    feeds = {"input": np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.float32)}
    left = [variant for variant in variants if variant.key != base.key]
    before = available()
    with closing(base.open(size)) as reference:
        reference.timed_run(feeds)
        room = _Room(available)
        room.note(before)
        while True:
            with ExitStack() as stack:
                group: dict[str, Opened] = {base.key: reference, **_open_group(left, size, feeds, room, stack)}
                say(f"timing {len(group)} variants, {len(left)} left")
                effort = Effort(seconds=seconds * len(group) / len({base.key, *(each.key for each in variants)}))
                found = time_steadily(list(group.values()), feeds, effort, say=say)
            yield dict(zip(group, found, strict=True))
            if not left:
                return


class _Room:
    """Whether another variant fits beside those that are open."""

    def __init__(self, available: Callable[[], int | None]) -> None:
        self.available = available
        self._largest = 0

    def note(self, before: int | None) -> None:
        """One was opened, and so much was available before."""
        after = self.available()
        if before is not None and after is not None:
            self._largest = max(self._largest, before - after)

    def is_left(self) -> bool:
        """For one that needs somewhat more than the largest so far."""
        now = self.available()
        return now is None or now - _RESERVE_BYTES > _MARGIN * self._largest


def _open_group(
    left: list[Variant], size: tuple[int, int], feeds: Mapping[str, Array], room: _Room, stack: ExitStack
) -> dict[str, Opened]:
    """Open variants from the front of `left` while there is room, one at least; those that fail are left out."""
    opened: dict[str, Opened] = {}
    while left and (not opened or room.is_left()):
        variant = left.pop(0)
        before = room.available()
        try:
            runtime = variant.open(size)
            stack.callback(runtime.close)
            # What a model needs shows when it has run.
            runtime.timed_run(feeds)
        except OdmError as error:
            say(f"{variant.key} left out: {error}")
            continue
        room.note(before)
        opened[variant.key] = runtime
    return opened
