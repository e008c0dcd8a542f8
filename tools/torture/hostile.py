"""Damaged files before every verb that reads such files: each ends as documented, in a line, soon and small."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from toolbox import only_named

from torture.batches import run_batch
from torture.commands import Command
from torture.forked import Outcome, run_forked
from torture.kinds import kinds_of
from torture.material import Material
from torture.mutating import damaged_bytes
from torture.tally import Tally

FRESH = 150
"""One command of so many is started anew."""
BATCH = 40
"""The others run one after the other in forked processes of so many."""


def throw(
    tally: Tally, made: Material, kept: Path, count: int, seed: int, wanted: str = "", deadline: float = math.inf
) -> None:
    """Throw damaged files at commands.

    Args:
        tally: counts.
        made: what is damaged.
        kept: a folder for those that broke something.
        count: how many.
        seed: of what is drawn at random.
        wanted: one kind; all otherwise.
        deadline: when to stop, of time.monotonic.

    Raises:
        UsageError: no such kind.
    """
    rng = random.Random(seed)
    thrower = _Thrower(tally, kept, seed)
    kinds = only_named(kinds_of(made), wanted, "kind of file")
    names = [name for name, kind in kinds.items() for _ in range(kind.weight)]
    for index in range(count):
        if time.monotonic() > deadline:
            break
        name = rng.choice(names)
        kind = kinds[name]
        seed_file = rng.choice(kind.seeds)
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        (folder / "out").mkdir()
        path = folder / seed_file.name
        try:
            damaged = kind.damage(seed_file.read_bytes(), rng)
        except Exception:  # what damages a document may make one that cannot be written
            damaged = damaged_bytes(seed_file.read_bytes(), rng)
        path.write_bytes(damaged)
        thrower.add(_Thrown(name, index, rng.choice(kind.readers)(path, folder / "out"), folder, path.stem))
    thrower.throw()


@dataclass(frozen=True)
class _Thrown:
    """A damaged file before a command."""

    kind: str
    index: int
    command: Command
    folder: Path
    stem: str
    """How the damaged file is called, whatever its suffix is by now."""


class _Thrower:
    """Runs what is added, several at a time, and counts."""

    def __init__(self, tally: Tally, kept: Path, seed: int) -> None:
        self._tally, self._kept, self._seed, self._waiting = tally, kept, seed, list[_Thrown]()

    def add(self, thrown: _Thrown) -> None:
        """Run it soon."""
        if thrown.index % FRESH == FRESH - 1:
            self._judge(thrown, run_forked(thrown.command, folder=thrown.folder, fresh=True), fresh=True)
            return
        self._waiting.append(thrown)
        if len(self._waiting) == BATCH:
            self.throw()

    def throw(self) -> None:
        """Run all that wait."""
        waiting, self._waiting = self._waiting, []
        outcomes = run_batch([(each.command, each.folder) for each in waiting])
        for thrown, outcome in zip(waiting, outcomes, strict=True):
            self._judge(thrown, outcome, fresh=False)

    def _judge(self, thrown: _Thrown, outcome: Outcome, *, fresh: bool) -> None:
        problem = outcome.fault or _half_written(thrown.folder / "out", outcome.code)
        words = " ".join(thrown.command.words)[:300]
        where = f"seed {self._seed}, {thrown.index}, {words}: {problem}" if problem else ""
        self._tally.note(thrown.kind, outcome, where, fresh=fresh)
        if problem:
            self._kept.mkdir(parents=True, exist_ok=True)
            for each in thrown.folder.glob(f"{thrown.stem}.*"):
                shutil.copy(each, self._kept / f"{self._seed}-{thrown.index}-{each.name}")
        shutil.rmtree(thrown.folder, ignore_errors=True)


def _half_written(out: Path, code: int) -> str:
    """What a failed command left; of a film that was cut off, what was there is upscaled, and the code says so."""
    left = [path.name for path in out.iterdir() if path.suffix != ".mp4" and path.name != "run"]
    return f"ends with {code} and leaves {', '.join(left)}" if code and left else ""
