"""A disk that is full after any number of bytes, and two writers of one target at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torture.forked import run_forked
from torture.hostile import Tally
from torture.kills import jobs_of
from torture.material import Material, scratch_free

_STEPS = 12
"""Sizes tried for each verb, spread evenly over its largest file."""


def fill(made: Material) -> Tally:
    """Let files end after 0 bytes, a few, and so on up to one less than a verb's largest file."""
    tally = Tally()
    for name, job in jobs_of(made).items():
        with tempfile.TemporaryDirectory(prefix="disk-") as scratch:
            out = Path(scratch)
            run_forked(job.call(out), folder=out)
            largest = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
        for step in range(_STEPS):
            with tempfile.TemporaryDirectory(prefix="disk-") as scratch:
                out = Path(scratch)
                size = step * (largest - 1) // (_STEPS - 1)
                outcome = run_forked(job.call(out), folder=out, file_bytes=size)
                tally.tried[name] += 1
                left = scratch_free(out)
                problem = outcome.fault or job.check(out) or (f"left {left}" if left else "")
                if not problem and not outcome.code:
                    problem = "ends with 0 although its file did not fit"
                if problem:
                    tally.failed.append(f"{name}, files end after {size} of {largest} bytes: {problem}")
    return tally


def write_twice(made: Material, rounds: int) -> Tally:
    """Two of the same command on one target at once: the result is one of theirs, whole, and nothing is left over."""
    tally = Tally()
    for name, job in jobs_of(made).items():
        if job.resumes:
            continue
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="twice-") as scratch:
                out = Path(scratch)
                other = os.fork()
                if other == 0:
                    run_forked(job.call(out), folder=out)
                    os._exit(0)
                outcome = run_forked(job.call(out), folder=out)
                os.waitpid(other, 0)
                tally.tried[name] += 1
                left = scratch_free(out)
                problem = outcome.fault or job.check(out) or (f"left {left}" if left else "")
                if problem:
                    tally.failed.append(f"{name}, two writers: {problem}")
    return tally
