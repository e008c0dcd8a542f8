"""A long night in fast motion: a folder of some thousand tiny frames through `upscale`, with an eye on its memory.

python tools/soak_folder.py --frames 3000

Ends with 1 if a frame is missing or differs from what the same picture gave before, or if memory kept growing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image
from soak import GROWTH_MIB, SIZE, exported
from toolbox import COMMAND
from torture.forked import resident_bytes

from odm_deploy.terminal import run

PICTURES = 16
"""Different ones; frames are these, over and over."""
_SAMPLES_A_SECOND = 4


@click.command(context_settings=COMMAND)
@click.option("--frames", default=3000, show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle at hand; the demo's is exported otherwise.")
def command(frames: int, bundle: Path | None) -> None:
    """Upscale them, and print what happened."""
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(scratch)
        bundle = bundle or exported(folder)
        _draw(folder / "frames", frames)
        upscale = [sys.executable, "-m", "odm_deploy", "upscale", str(folder / "frames"), str(folder / "large")]
        started, sizes = time.monotonic(), list[int]()
        with subprocess.Popen([*upscale, "--model", str(bundle)], stderr=subprocess.DEVNULL) as running:
            while running.poll() is None:
                sizes.append(resident_bytes(running.pid) >> 20)
                time.sleep(1 / _SAMPLES_A_SECOND)
        seconds = time.monotonic() - started
        problems = [f"it ended with {running.returncode}"] if running.returncode else []
        problems += _wrong(folder / "large", frames)
    early, late = sizes[len(sizes) // 5], max(sizes[-len(sizes) // 5 : -2] or sizes)
    if late - early > GROWTH_MIB:
        problems.append(f"memory grew from {early} to {late} MiB")
    tenths = [sizes[min(len(sizes) - 3, tenth * len(sizes) // 10)] for tenth in range(11)]
    click.echo(f"{frames} frames in {seconds:.0f} s, {len(problems)} problems")
    click.echo(f"resident memory at every tenth of the time, MiB: {', '.join(map(str, tenths))}")
    click.echo("\n".join(problems[:20]))
    sys.exit(1 if problems else 0)


def _draw(folder: Path, frames: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(frames):
        path = folder / f"{index:06d}.png"
        if index < PICTURES:
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"{index % PICTURES:06d}.png", path)


def _wrong(folder: Path, frames: int) -> list[str]:
    """Frames that are missing, or not the same as the first of the same picture."""
    problems, first = list[str](), dict[int, str]()
    for index in range(frames):
        path = folder / f"{index:06d}.png"
        if not path.is_file():
            problems.append(f"{path.name} is missing")
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if first.setdefault(index % PICTURES, found) != found:
            problems.append(f"{path.name} is another picture than before")
    return problems


if __name__ == "__main__":
    run(command, "soak_folder.py")
