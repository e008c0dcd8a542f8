"""The timed loop: warm up, then measure models in alternating blocks, keeping every single duration.

Two models timed one after the other are compared under different clocks, temperatures and neighbours. Alternating short
blocks spread such drift over both; single alternating runs would instead let the thread pool of one model, which spins
on for a while, slow down the other, which is why the first run of each block is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from odm_deploy.errors import UsageError
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.runtimes.base import Runtime, RunTimes
from odm_deploy.runtimes.tensor_info import Array
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine

_WARM_UP_S = 0.5
_WARM_UP_RUNS = 2
_SLOW_S = 2.0
"""Runs that take so long need no more than one before they count, and no thread pool's spinning matters to them."""
# Rounds cost an uncounted run of each model, so few runs make few rounds; two at least, for drift to show in both.
_RUNS_A_ROUND = 5
_MOST_ROUNDS = 8
_MOST_ITERATIONS = 2000
_QUEUED_ROUNDS, _FEWEST_QUEUED, _QUEUED_MS = 4, 5, 100.0


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    iterations: int | None = None
    """Counted runs of each model; None takes as many as fit into `seconds`, between `fewest` and 2000."""
    seconds: float = 5.0
    """Time to spend measuring, over all models; the fewest runs of a slow one may take longer, which is said."""
    fewest: int = 3
    """Counted runs of each model, however long they take, where `iterations` is None."""
    fewest_rounds: int = 2
    """Over how many rounds they are spread, where they are as many."""

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(f"--iterations {self.iterations}", why="at least one run has to be measured")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise UsageError(f"--seconds {self.seconds:g}", why="it has to be a positive number of seconds")


@dataclass(frozen=True)
class Percentiles:
    """A distribution of durations, in milliseconds."""

    p25: float
    p50: float
    p75: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Percentiles:
        """Percentiles (linear between neighbouring samples) and mean of at least one sample."""
        p25, p50, p75, p90, p99 = map(float, np.percentile(samples_ms, (25, 50, 75, 90, 99)))
        return cls(p25, p50, p75, p90, p99, float(np.mean(samples_ms)))

    @property
    def spread(self) -> float:
        """Distance of the quartiles in parts of the median."""
        return (self.p75 - self.p25) / self.p50


class Timed(Protocol):
    """What can be timed: every `Runtime`, and whatever else runs a model."""

    def timed_run(self, feeds: Mapping[str, Array]) -> RunTimes:
        """Run once for its duration."""
        ...


def time_runs(
    runtimes: Sequence[Timed],
    feeds: Mapping[str, Array],
    effort: Effort | None = None,
    track: Track = untracked,
    say: Say = silent,
) -> list[list[RunTimes]]:
    """Time several models on the same input, in alternation; says so where that takes much longer than was asked for.

    Returns:
        For each model its counted runs, in the order they happened. All models have the same number.

    Raises:
        InputError: a model does not take these feeds.
    """
    effort = effort or Effort()
    one_of_each_s = [_warm_up(runtime, feeds) for runtime in runtimes]
    fitting = int(effort.seconds / max(sum(one_of_each_s), 1e-9))
    count = effort.iterations or max(effort.fewest, min(_MOST_ITERATIONS, fitting))
    if effort.iterations is None and count > 2 * max(fitting, 1):
        each = " and ".join(f"{seconds:.1f}" for seconds in one_of_each_s)
        say(f"a run takes {each} s; {count} of each, {count * sum(one_of_each_s):.0f} s: a smaller size is faster")
    blocks = _split(count, effort.fewest_rounds)
    samples: list[list[RunTimes]] = [[] for _ in runtimes]
    for index, block in enumerate(track(blocks, len(blocks))):
        # Every other round runs backwards, so that no model always comes first.
        order = range(len(runtimes)) if index % 2 == 0 else reversed(range(len(runtimes)))
        for which in order:
            if len(runtimes) > 1 and max(one_of_each_s) < _SLOW_S:
                runtimes[which].timed_run(feeds)
            samples[which].extend(runtimes[which].timed_run(feeds) for _ in range(block))
    return samples


def time_queued(
    runtimes: Sequence[Runtime], feeds: Mapping[str, Array], runs: Sequence[Sequence[RunTimes]]
) -> list[float | None]:
    """Time the same models with many runs queued one behind the other, in alternation; `runs` says how long each takes.

    Returns:
        For each model the median milliseconds a run of GPU compute; None for runtimes that compute in host memory.
    """
    counts = [_bursts(each) for each in runs]
    samples: list[list[float]] = [[] for _ in runtimes]
    for index in range(_QUEUED_ROUNDS):
        order = range(len(runtimes)) if index % 2 == 0 else reversed(range(len(runtimes)))
        for which in order:
            runtime = runtimes[which]
            if isinstance(runtime, TensorRtEngine):
                samples[which].append(runtime.back_to_back_ms(feeds, counts[which]))
    return [float(np.median(each)) if each else None for each in samples]


def _bursts(runs: Sequence[RunTimes]) -> int:
    """How many runs to queue: enough to hide launches, and not longer than a part of what was spent already."""
    ms = float(np.median([run.latency_ms for run in runs]))
    return max(_FEWEST_QUEUED, min(len(runs), int(_QUEUED_MS / ms)))


def _warm_up(runtime: Timed, feeds: Mapping[str, Array]) -> float:
    """Run until caches, clocks and just-in-time compilers have settled; returns seconds of the fastest run."""
    start = time.perf_counter()
    fastest, runs = math.inf, 0
    while runs < _WARM_UP_RUNS or time.perf_counter() - start < _WARM_UP_S:
        if runs and fastest > _SLOW_S:
            break
        before = time.perf_counter()
        runtime.timed_run(feeds)
        fastest, runs = min(fastest, time.perf_counter() - before), runs + 1
    return fastest


def _split(count: int, fewest_rounds: int) -> list[int]:
    """`count` runs over the rounds as evenly as possible, none of them empty."""
    rounds = min(count, max(fewest_rounds, min(_MOST_ROUNDS, count // _RUNS_A_ROUND)))
    return [count // rounds + (index < count % rounds) for index in range(rounds)]
