"""SIGKILL at random instants over every verb: afterwards the old is there, or the new, whole."""

from __future__ import annotations

import math
import random
import tempfile
import time
from pathlib import Path

from torture.forked import run_forked
from torture.jobs import Job, leaving
from torture.material import Material, scratch_free
from torture.results import names_in, result_of
from torture.tally import Tally

KILLS_IN_A_ROW = 4
"""In one folder, before the command is let through."""
FRESH = 12
"""One command of so many is started anew instead of forked."""
_START_S = 2.0
"""So much longer does that take."""
_FOREVER_S = 1.5
"""Until when what does not end by itself is killed."""


def kill(tally: Tally, made: Material, count: int, seed: int, wanted: str = "", deadline: float = math.inf) -> None:
    """Kill `count` commands, of one verb or of all, and look at what they leave; `deadline` is of time.monotonic.

    Raises:
        UsageError: no such verb, or it leaves nothing.
    """
    rng = random.Random(seed)
    jobs, names = leaving(made, wanted)
    durations: dict[str, float] = {}
    expected: dict[str, str] = {}
    while tally.tried.total() < count and time.monotonic() < deadline:
        name = rng.choice(names)
        job = jobs[name]
        with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
            out = Path(scratch)
            if name not in durations:
                durations[name], expected[name] = undisturbed(name, job, out / "whole")
            row = out / "killed"
            row.mkdir()
            _kill_in_a_row(tally, name, job, row, durations[name], rng, f"seed {seed}")
            if job.ends and (problem := _afterwards(job, row, expected[name])):
                tally.failed.append(f"{name}: seed {seed}, the run afterwards: {problem}")


def undisturbed(name: str, job: Job, out: Path) -> tuple[float, str]:
    """How long it takes, in seconds, and what it ends with."""
    out.mkdir()
    if not job.ends:
        return _FOREVER_S, ""
    if job.prepare is not None:
        job.prepare(out)
    whole = run_forked(job.call(out), folder=out)
    if problem := whole.fault or (whole.code and whole.said) or job.check(out):
        raise AssertionError(f"{name} does not run undisturbed: {problem}")
    return whole.seconds, result_of(out)


def _kill_in_a_row(
    tally: Tally, name: str, job: Job, out: Path, duration: float, rng: random.Random, where: str
) -> None:
    if job.prepare is not None:
        job.prepare(out)
    if rng.random() < 0.5 and job.writes and not job.resumes:
        # What was there before is to survive; the one file is replaced as a whole.
        run_forked(job.call(out), folder=out)
    before = names_in(out) if not job.resumes else set[str]()
    for _ in range(KILLS_IN_A_ROW):
        fresh = rng.randrange(FRESH) == 0
        instant = rng.random() * (duration + fresh * _START_S)
        outcome = run_forked(job.call(out), folder=out, kill_after_s=instant, fresh=fresh)
        lost = sorted(before - names_in(out))
        # Between the two renames that replace a folder, the old one is there under another name.
        stepped_aside = any(left.endswith(RETIRED) for left in scratch_free(out))
        problem = outcome.fault or job.check(out) or (f"{lost[0]} is lost" if lost and not stepped_aside else "")
        problem = f"{where}, killed after {instant:.3f} s: {problem}" if problem else ""
        tally.note(name, outcome, problem, counts=outcome.killed, fresh=fresh)


RETIRED = ".old"
"""How the name of a folder ends that steps aside."""


def _afterwards(job: Job, out: Path, expected: str) -> str:
    """What is wrong once the command was let through."""
    last = run_forked(job.call(out), folder=out)
    if last.code or last.fault:
        return last.fault or last.said
    if left := scratch_free(out):
        return f"left {left}"
    return job.check(out) or ("" if result_of(out) == expected else "another result than undisturbed")
