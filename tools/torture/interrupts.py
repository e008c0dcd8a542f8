"""Ctrl-C at random instants over every verb, once or twice: one word, exit code 130, and nobody and nothing is left."""

from __future__ import annotations

import math
import random
import signal
import tempfile
import time
from pathlib import Path

from torture.forked import Outcome, run_forked
from torture.jobs import Job, leaving
from torture.kills import undisturbed
from torture.material import Material, scratch_free
from torture.tally import Tally

INTERRUPTED = 130
FASTEST_S, SLOWEST_S = 0.01, 0.2
"""How soon the second Ctrl-C of an impatient user follows the first."""


def interrupt(
    tally: Tally, made: Material, count: int, seed: int, wanted: str = "", deadline: float = math.inf
) -> None:
    """Interrupt `count` commands, of one verb or of all, and look at what they say and leave.

    Of every two one is interrupted twice: it need not clean up then, but has to end as it was told to.

    Raises:
        UsageError: no such verb, or it leaves nothing.
    """
    rng = random.Random(seed)
    jobs, names = leaving(made, wanted)
    durations: dict[str, float] = {}
    while tally.tried.total() < count and time.monotonic() < deadline:
        name = rng.choice(names)
        job = jobs[name]
        with tempfile.TemporaryDirectory(prefix="interrupt-") as scratch:
            out = Path(scratch)
            if name not in durations:
                durations[name] = undisturbed(name, job, out / "whole")[0]
            row = out / "interrupted"
            row.mkdir()
            if job.prepare is not None:
                job.prepare(row)
            instants = [rng.random() * durations[name]]
            if rng.random() < 0.5:
                instants.append(instants[0] + rng.uniform(FASTEST_S, SLOWEST_S))
            outcome = run_forked(job.call(row), folder=row, interrupt_after_s=instants)
            problem = _problem(job, row, outcome, twice=len(instants) > 1)
            where = f"seed {seed}, Ctrl-C after {' and '.join(f'{instant:.3f} s' for instant in instants)}"
            tally.note(name, outcome, f"{where}: {problem}" if problem else "")


def _problem(job: Job, out: Path, outcome: Outcome, *, twice: bool) -> str:
    """What is wrong; empty where all is as documented."""
    if outcome.code not in (0, INTERRUPTED, *([-signal.SIGINT] if twice else [])):
        return f"ends with {outcome.code}: {outcome.said[-300:]}"
    _, traceback, rest = outcome.said.partition("Traceback (most recent call last)")
    if traceback:
        return f"traceback: {rest[:1200]}"
    words = outcome.said.strip().splitlines()[-1:]
    if outcome.code == INTERRUPTED and not (words and words[0].startswith("interrupted")):
        return f"its last words are {words}"
    if outcome.orphans:
        return f"left {outcome.orphans} running"
    left = [] if twice else scratch_free(out)
    return f"left {left}" if left else job.check(out)
