"""Strangers' files, crashes and full disks, done to every verb on purpose.

python tools/torture.py --part hostile --count 10000 --out torture.json
python tools/torture.py --part kills --count 500 --out torture.json

Parts: hostile (damaged files), kills (SIGKILL at random instants), disks (files that end after any number of bytes),
writers (two at once). Counts add up in --out over several runs. Ends with 1 if anything failed.
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
from torture.disks import fill, write_twice
from torture.forked import import_commands
from torture.hostile import Tally, throw
from torture.kills import kill
from torture.material import Material, make_material

from odm_deploy.terminal import run

PARTS = ("hostile", "kills", "disks", "writers")


@click.command(context_settings=COMMAND)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="What to do; repeatable.")
@click.option("--count", default=200, show_default=True, help="Damaged files, or kills.")
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
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        made = make_material(Path(folder) / "material")
        for part in parts:
            deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
            tally = _do(part, made, count, seed, only, deadline)
            _add(kept, part, tally)
            if out is not None:
                write_json(out, kept)
    rows = [
        (part, kind, tried, sum(line.startswith(kind) for line in kept[part]["failed"]))
        for part in kept
        for kind, tried in kept[part]["tried"].items()
    ]
    click.echo(markdown_table(("part", "kind", "tried", "failed"), rows))
    failed = [line for part in kept.values() for line in part["failed"]]
    click.echo("\n".join(failed))
    sys.exit(1 if failed else 0)


def _do(part: str, made: Material, count: int, seed: int, only: str, deadline: float) -> Tally:
    if part == "hostile":
        return throw(made, count, seed, only, deadline)
    if part == "kills":
        return kill(made, count, seed, only, deadline)
    return fill(made) if part == "disks" else write_twice(made, 3)


def _add(kept: dict[str, Any], part: str, tally: Tally) -> None:
    before = kept.setdefault(part, {"tried": {}, "failed": []})
    for kind, tried in tally.tried.items():
        before["tried"][kind] = before["tried"].get(kind, 0) + tried
    before["failed"] += tally.failed


if __name__ == "__main__":
    run(command, "torture.py")
