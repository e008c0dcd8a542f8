"""A disk that is full after any number of pages, and two writers of one target at once."""

from __future__ import annotations

import math
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from toolbox import only_named

from torture.commands import Command
from torture.forked import run_forked
from torture.jobs import Job, jobs_of
from torture.material import Material, scratch_free
from torture.results import names_in
from torture.tally import Tally

_STEPS = 40
"""Disks tried for each verb, with and without an old result, spread evenly over what it writes."""
_SECONDS = 40.0
"""Verbs that take long get fewer."""
_PAGE = 4096
_AMPLE = 256 << 20
_SCRATCH = "tmp"
"""The folder for temporary files."""
_FILLER = "filler"


@contextmanager
def _disk(size: int) -> Generator[Path]:
    """A file system in memory of so many bytes; needs the rights to mount one."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def _resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True, capture_output=True)


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def fill(tally: Tally, made: Material, seed: int, wanted: str = "", deadline: float = math.inf) -> None:
    """Run every verb that writes on disks of one page, two, and so on up to what it needs less a page.

    Temporary files go to the same disk.

    Raises:
        UsageError: no such verb, or it writes nothing.
    """
    rng = random.Random(seed)
    jobs = {name: job for name, job in jobs_of(made).items() if job.writes or job.prints}
    for name, job in only_named(jobs, wanted, "verb").items():
        with _disk(_AMPLE) as out:
            if job.prepare is not None:
                job.prepare(out)
            start = _used(out)
            whole = run_forked(_within(job, out), folder=out)
            if whole.code or whole.fault or job.check(out):
                raise AssertionError(f"{name} does not run with room: {whole.said or job.check(out)}")
            need = _used(out) - start
        pages = max(1, need // _PAGE)
        steps = int(max(4, min(_STEPS, _SECONDS / whole.seconds, pages)))
        for room in sorted(rng.sample(range(pages), min(steps, pages))):
            for before in (False, True)[: 1 if job.resumes or job.prints else 2]:
                if time.monotonic() > deadline:
                    return
                _fill_once(tally, name, job, room * _PAGE, before=before)


def _within(job: Job, out: Path) -> Command:
    """The verb, with its temporary files on the same disk."""
    (out / _SCRATCH).mkdir(exist_ok=True)
    return replace(job.call(out), scratch=out / _SCRATCH)


def _fill_once(tally: Tally, name: str, job: Job, room: int, *, before: bool) -> None:
    """Run a verb with so many bytes of room, beside an old result of its own or not."""
    with _disk(_AMPLE) as out:
        if job.prepare is not None:
            job.prepare(out)
        if before:
            run_forked(_within(job, out), folder=out)
        # A size of 0 would mean no limit.
        (out / _FILLER).write_bytes(bytes(_PAGE))
        there = names_in(out)
        (out / _SCRATCH).mkdir(exist_ok=True)
        _resize(out, _used(out) + room)
        outcome = run_forked(_within(job, out), folder=out)
        lost = sorted(there - names_in(out))
        left = [*scratch_free(out), *(path.name for path in (out / _SCRATCH).iterdir())]
        # What is printed may break off, but not in silence.
        problem = outcome.fault or ("" if job.prints and outcome.code else job.check(out))
        problem = problem or (f"left {left}" if left else "") or (f"{lost[0]} is lost" if lost else "")
        if not problem and not outcome.code and names_in(out) == {_FILLER}:
            problem = "ends with 0 and wrote nothing"
        where = f"{room} bytes of room, {'an old result' if before else 'nothing'} there: {problem}" if problem else ""
        tally.note(name, outcome, where)


def write_twice(
    tally: Tally, made: Material, rounds: int, seed: int, wanted: str = "", deadline: float = math.inf
) -> None:
    """Two of the same command on one target at once: the result is one of theirs, whole, and nothing is left over.

    Raises:
        UsageError: no such verb, or no two may write at once.
    """
    rng = random.Random(seed)
    jobs = {name: job for name, job in jobs_of(made).items() if job.writes and not (job.resumes or job.prints)}
    for name, job in only_named(jobs, wanted, "verb").items():
        for _ in range(rounds):
            if time.monotonic() > deadline:
                return
            with tempfile.TemporaryDirectory(prefix="twice-") as scratch:
                out = Path(scratch)
                if job.prepare is not None:
                    job.prepare(out)
                later = rng.random() * 0.2
                other = os.fork()
                if other == 0:
                    time.sleep(later)
                    os._exit(bool(run_forked(job.call(out), folder=out).fault))
                outcome = run_forked(job.call(out), folder=out)
                _, status = os.waitpid(other, 0)
                left = scratch_free(out)
                problem = outcome.fault or job.check(out) or (f"left {left}" if left else "")
                problem = problem or ("the other ends otherwise than in a line" if status else "")
                problem = problem or ("" if names_in(out) else "nothing is there")
                tally.note(name, outcome, f"two writers: {problem}" if problem else "")
