"""Whether durations tell anything: those that lie far apart are measured again, and called unsteady if they stay so.

The median of runs that other work on the machine disturbed depends on when it came. Once SwinIR's float form ran
between 192 and 378 ms, and its median named the wrong winner. So models whose quartiles lie more than `UNSTEADY` of
the median apart are timed again, beside what they are compared with, a few times; the steadiest time counts.

Some machines are never steady: cores of virtual machines change between two speeds for seconds. Such noise only makes
runs slower, so the fastest runs tell what the machine can do (Chen and Revels, Robust benchmarking in noisy
environments, 2016), provided that several of them agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from odm_deploy.bench.timing import Effort, Percentiles, Timed, time_runs
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.runtimes.tensor_info import Array

UNSTEADY = 0.1
"""Distance of the quartiles in parts of the median from which on a median is not worth naming; and of a ratio of
medians from that of the fastest runs."""
ATTEMPTS = 3
"""How often a model is timed at most."""
ENOUGH_RUNS, ENOUGH_ROUNDS = 8, 4
"""At least so many in each attempt after the first, and among so many the fastest are sought: of fewer, perhaps none
was undisturbed."""
FEW, SHARE = 3, 0.05
"""How many of the fastest runs have to agree, or which part of all where that is more: no single lucky one counts."""
AGREEMENT = 0.05
"""How much longer than the fastest the last of them may take."""


@dataclass(frozen=True)
class AtBest:
    """Medians of the fastest runs, which agree."""

    ms: float
    """Of the model."""
    base_ms: float
    """Of what it is compared with."""

    @property
    def speedup(self) -> float:
        """How many times faster than what it is compared with."""
        return self.base_ms / self.ms


@dataclass(frozen=True)
class Timing:
    """A model's runs, and those of what it is compared with at the same time."""

    runs: Sequence[RunTimes]
    base: Sequence[RunTimes]
    all_runs: Sequence[RunTimes] = ()
    """Of all attempts; none: there was this one alone."""
    all_base: Sequence[RunTimes] = ()
    """Of all attempts at any model, also at those that this one had no part in."""

    @property
    def spread(self) -> float:
        """The larger distance of quartiles of the two: a ratio is as unsteady as either."""
        return max(Percentiles.of(deciding_ms(runs)).spread for runs in (self.runs, self.base))

    @property
    def speedup(self) -> float:
        """How many times faster than the base, by medians."""
        ms, base_ms = (Percentiles.of(deciding_ms(runs)).p50 for runs in (self.runs, self.base))
        return base_ms / ms

    @property
    def steady(self) -> bool:
        """Whether the ratio of the two medians tells anything: not where one ran at one speed of the machine and the
        other at another, which each of them did steadily.
        """
        at_best = self.at_best
        return self.spread <= UNSTEADY and (at_best is None or abs(self.speedup / at_best.speedup - 1.0) <= UNSTEADY)

    @property
    def at_best(self) -> AtBest | None:
        """What the fastest runs of all attempts say; None where they are too few, or do not agree."""
        ms, base_ms = _at_best_ms(self.all_runs or self.runs), _at_best_ms(self.all_base or self.base)
        return None if ms is None or base_ms is None else AtBest(ms, base_ms)


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

    Where that is more than half of them, it is the machine, and all are timed again: what ran steadily may have met its
    slower speed alone.

    Args:
        runtimes: the models.
        feeds: their input.
        effort: how long to measure them all; those that are measured again get their part of it.
        track: shows progress.
        say: is told what is measured again.
        base: index of the model that the others are compared with.

    Returns:
        For each model its steadiest runs, with as many of the base of the same time, and all there are of either.

    Raises:
        InputError: a model does not take these feeds.
    """
    effort = effort or Effort()
    attempts: list[list[Timing]] = [[] for _ in runtimes]
    every: list[list[RunTimes]] = [[] for _ in runtimes]
    wanted = list(range(len(runtimes)))
    for attempt in range(ATTEMPTS):
        timed = sorted({base, *wanted})
        if attempt:
            effort = replace(effort, fewest=ENOUGH_RUNS, fewest_rounds=ENOUGH_ROUNDS)
        part = replace(effort, seconds=effort.seconds * len(timed) / len(runtimes))
        runs = dict(zip(timed, time_runs([runtimes[i] for i in timed], feeds, part, track, say), strict=True))
        for index, found in runs.items():
            every[index] += found
        for index in wanted:
            attempts[index].append(Timing(runs[index], runs[base]))
        unsteady = [index for index, tried in enumerate(attempts) if not any(each.steady for each in tried)]
        if not unsteady or attempt == ATTEMPTS - 1:
            break
        wanted = unsteady if 2 * len(unsteady) <= len(runtimes) else list(range(len(runtimes)))
        again = " and are" if wanted == unsteady else ", so all are"
        say(f"{len(unsteady)} of {len(runtimes)} models ran unsteadily{again} timed again")
    return [
        replace(min(tried, key=lambda each: each.spread), all_runs=every[index], all_base=every[base])
        for index, tried in enumerate(attempts)
    ]


def _at_best_ms(runs: Sequence[RunTimes]) -> float | None:
    ms = sorted(deciding_ms(runs))
    fastest = ms[: max(FEW, int(SHARE * len(ms)))]
    if len(ms) < ENOUGH_RUNS or fastest[-1] > (1 + AGREEMENT) * fastest[0]:
        return None
    return float(np.median(fastest))
