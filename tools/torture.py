"""Strangers' files, crashes and full disks, done to every verb on purpose.

python tools/torture.py --part hostile --count 10000 --out torture.json
python tools/torture.py --part kills --count 500 --out torture.json

Parts: hostile (damaged files), kills (SIGKILL at random instants), interrupts (Ctrl-C at random instants, once or
twice), disks (full after any number of pages, which takes the rights to mount a file system in memory), writers (two at
once). Counts add up in --out over several runs, which each draw anew. Commands run in forks of a process that has
imported what they import, those that read damaged files several in one; a share is started anew, which the table
counts. Ends with 1 if anything failed.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from toolbox import COMMAND, markdown_table, read_json, write_json
from torture.commands import import_commands
from torture.disks import fill, write_twice
from torture.hostile import throw
from torture.interrupts import interrupt
from torture.kills import kill
from torture.material import Material, make_material
from torture.tally import Tally

from odm_deploy.terminal import run

PARTS = ("hostile", "kills", "interrupts", "disks", "writers")


@click.command(context_settings=COMMAND)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="What to do; repeatable.")
@click.option("--count", default=200, show_default=True, help="Damaged files, kills or interrupts.")
@click.option("--minutes", type=float, help="Stop a part after so long, whatever its count.")
@click.option("--only", default="", help="One kind of file, or verb.")
@click.option("--seed", type=int, help="Of what is drawn at random; the time where none is given.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file that counts are added to.")
def command(
    parts: tuple[str, ...], count: int, minutes: float | None, only: str, seed: int | None, out: Path | None
) -> None:
    """Do it, and print what was tried and what failed."""
    import_commands()
    seed = int(time.time()) if seed is None else seed
    kept: dict[str, Any] = read_json(out) if out is not None and out.exists() else {}
    tallies = {part: Tally.from_dict(each) for part, each in kept.items()}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        made = make_material(Path(folder) / "material")
        for part in parts:
            deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
            tally = Tally()
            try:
                _do(part, tally, made, out, count, seed, only, deadline)
            finally:
                tallies[part] = tallies[part].plus(tally) if part in tallies else tally
                if out is not None:
                    write_json(out, {name: each.to_dict() for name, each in tallies.items()})
    head = ("part", "kind", "tried", "of those started anew", "failed", "slowest, s", "largest, MiB")
    click.echo(markdown_table(head, [row for part, tally in tallies.items() for row in tally.rows(part)]))
    for part, tally in tallies.items():
        click.echo(
            f"{part}: {tally.tried.total()} tried, {tally.fresh.total()} of them started anew, "
            f"{len(tally.failed)} failed; exit codes {dict(sorted(tally.codes.items()))}"
        )
    failed = [line for tally in tallies.values() for line in tally.failed]
    click.echo("\n".join(failed))
    sys.exit(1 if failed else 0)


def _do(
    part: str, tally: Tally, made: Material, out: Path | None, count: int, seed: int, only: str, deadline: float
) -> None:
    if part == "hostile":
        kept = Path("torture-failed") if out is None else out.with_suffix(".failed")
        throw(tally, made, kept, count, seed, only, deadline)
    elif part == "kills":
        kill(tally, made, count, seed, only, deadline)
    elif part == "interrupts":
        interrupt(tally, made, count, seed, only, deadline)
    elif part == "disks":
        fill(tally, made, seed, only, deadline)
    else:
        write_twice(tally, made, 3, seed, only, deadline)


if __name__ == "__main__":
    run(command, "torture.py")
