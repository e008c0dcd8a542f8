"""Whether durations tell anything: those that lie far apart are measured again, and called unsteady if they stay so.

The median of runs that other work on the machine disturbed depends on when it came. Once SwinIR's float form ran
between 192 and 378 ms, and its median named the wrong winner. So models whose quartiles lie more than `UNSTEADY` of
the median apart are timed again, beside what they are compared with, a few times; the steadiest time counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from odm_deploy.bench.timing import Effort, Percentiles, Timed, time_runs
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.runtimes.tensor_info import Array

UNSTEADY = 0.1
"""Distance of the quartiles in parts of the median from which on a median is not worth naming."""
ATTEMPTS = 3
"""How often a model is timed at most."""


@dataclass(frozen=True)
class Timing:
    """A model's runs, and those of what it is compared with at the same time."""

    runs: Sequence[RunTimes]
    base: Sequence[RunTimes]

    @property
    def spread(self) -> float:
        """The larger distance of quartiles of the two: a ratio is as unsteady as either."""
        return max(Percentiles.of(deciding_ms(runs)).spread for runs in (self.runs, self.base))

    @property
    def steady(self) -> bool:
        """Whether the ratio of the two medians tells anything."""
        return self.spread <= UNSTEADY


def deciding_ms(runs: Sequence[RunTimes]) -> list[float]:
    """What speeds compare: GPU compute where it is known (copies are the same for all), else latency."""
    return [run.latency_ms if run.compute_ms is None else run.compute_ms for run in runs]


def time_steadily(
    runtimes: Sequence[Timed],
    feeds: Mapping[str, Array],
    effort: Effort | None = None,
    track: Track = untracked,
    say: Say = silent,
    *,
    base: int = 0,
) -> list[Timing]:
    """Time several models on the same input as `time_runs` does, and those again that come out unsteady.

    Args:
        runtimes: the models.
        feeds: their input.
        effort: how long to measure them all; those that are measured again get their part of it.
        track: shows progress.
        say: is told what is measured again.
        base: index of the model that the others are compared with.

    Returns:
        For each model its steadiest runs, with those of the base of the same time. All within one `Timing` have the
        same number of runs.

    Raises:
        InputError: a model does not take these feeds.
    """
    effort = effort or Effort()
    best: dict[int, Timing] = {}
    wanted = list(range(len(runtimes)))
    for attempt in range(ATTEMPTS):
        timed = sorted({base, *wanted})
        if attempt:
            say(f"{len(wanted)} of {len(runtimes)} models ran unsteadily and are timed again")
        part = replace(effort, seconds=effort.seconds * len(timed) / len(runtimes))
        runs = dict(zip(timed, time_runs([runtimes[i] for i in timed], feeds, part, track, say), strict=True))
        for index in wanted:
            found = Timing(runs[index], runs[base])
            if index not in best or found.spread < best[index].spread:
                best[index] = found
        wanted = [index for index in wanted if not best[index].steady]
        if not wanted:
            break
    return [best[index] for index in range(len(runtimes))]
