"""Damaged files before every verb that reads such files: each ends as documented, in a line, soon and small."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from pathlib import Path

from torture.forked import run_forked
from torture.kinds import kinds_of
from torture.material import Material
from torture.tally import Tally

FRESH = 50
"""One command of so many is started anew instead of forked."""


def throw(made: Material, kept: Path, count: int, seed: int, wanted: str = "", deadline: float = math.inf) -> Tally:
    """Throw damaged files at commands.

    Args:
        made: what is damaged.
        kept: a folder for those that broke something.
        count: how many.
        seed: of what is drawn at random.
        wanted: one kind; all otherwise.
        deadline: when to stop, of time.monotonic.
    """
    tally, rng = Tally(), random.Random(seed)
    kinds = {name: kind for name, kind in kinds_of(made).items() if wanted in ("", name)}
    names = [name for name, kind in kinds.items() for _ in range(kind.weight)]
    for index in range(count):
        if time.monotonic() > deadline:
            break
        name = rng.choice(names)
        kind = kinds[name]
        seed_file = rng.choice(kind.seeds)
        with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
            folder = Path(scratch)
            (folder / "out").mkdir()
            path = folder / seed_file.name
            path.write_bytes(kind.damage(seed_file.read_bytes(), rng))
            command, fresh = rng.choice(kind.readers)(path, folder / "out"), index % FRESH == FRESH - 1
            outcome = run_forked(command, folder=folder, fresh=fresh)
            problem = outcome.fault or _half_written(folder / "out", outcome.code)
            where = f"seed {seed}, {index}, {' '.join(command.words)[:300]}: {problem}" if problem else ""
            tally.note(name, outcome, where, fresh=fresh)
            if problem:
                kept.mkdir(parents=True, exist_ok=True)
                for each in folder.glob(f"{Path(seed_file.name).stem}.*"):
                    shutil.copy(each, kept / f"{seed}-{index}-{each.name}")
    return tally


def _half_written(out: Path, code: int) -> str:
    """What a failed command left; of a film that was cut off, what was there is upscaled, and the code says so."""
    left = [path.name for path in out.iterdir() if path.suffix != ".mp4" and path.name != "run"]
    return f"ends with {code} and leaves {', '.join(left)}" if code and left else ""
