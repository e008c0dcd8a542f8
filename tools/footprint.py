"""What a bundle takes on disk and in memory, and how long its first image takes, on each runtime of this machine.

    python tools/footprint.py bundle another-bundle --size 320x180

Every runtime opens every bundle in a process of its own, in turn, so that nothing is loaded or compiled already and the
peak of resident memory is its own (Linux). Runtimes that do not work here are left out with a line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from toolbox import COMMAND, markdown_table

from odm_deploy.bundle import Bundle
from odm_deploy.terminal import SIZE, run, say

_CHILD = r"""
import json, re, sys, time
bundle, runtime, height, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from odm_deploy.engine import Engine
import numpy as np
def peak_kib():
    # Not getrusage, which counts what the process was before it became this program.
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
before = peak_kib()
start = time.perf_counter()
engine = Engine.open(bundle, runtime, tile=0)
opened = time.perf_counter()
engine.upscale(image)
first = time.perf_counter()
engine.upscale(image)
done = time.perf_counter()
print(json.dumps({"open_s": opened - start, "first_s": first - opened, "next_s": done - first,
                  "peak_kib": peak_kib(), "before_kib": before}))
"""


@click.command(context_settings=COMMAND)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--size", type=SIZE, metavar="WxH", default="320x180", show_default=True, help="Input, in pixels.")
@click.option("--runtime", "runtimes", multiple=True, default=("openvino", "onnxruntime"), help="Repeatable.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Processes for each.")
def command(bundles: tuple[Path, ...], size: tuple[int, int], runtimes: tuple[str, ...], rounds: int) -> None:
    """Print two tables: files, and what opening and running takes; medians of ROUNDS processes."""
    height, width = size
    click.echo(markdown_table(["bundle", "file", "KiB"], [row for bundle in bundles for row in files(bundle)]))
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for bundle in bundles:
            for runtime in runtimes:
                found = measure(bundle, runtime, height, width)
                if found is not None:
                    measured.setdefault((str(bundle), runtime), []).append(found)
    head = ["bundle", "runtime", "open", "first image", "next image", "peak memory", "of it before opening"]
    click.echo(markdown_table(head, [[*key, *_cells(values)] for key, values in measured.items()]))


def files(bundle: Path) -> list[list[str]]:
    """A row for each file of a bundle: its name and its KiB."""
    folder = Bundle.open(bundle).folder
    assert folder is not None
    return [[str(bundle), path.name, f"{path.stat().st_size / 1024:.0f}"] for path in sorted(folder.iterdir())]


def measure(bundle: Path, runtime: str, height: int, width: int) -> dict[str, float] | None:
    """Seconds and KiB of one process that upscales two images; None, and a line, where it cannot."""
    command = [sys.executable, "-c", _CHILD, str(bundle), runtime, str(height), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        say(f"{bundle} on {runtime} left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return None
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _cells(values: list[dict[str, Any]]) -> list[str]:
    def middle(key: str) -> float:
        return statistics.median(value[key] for value in values)

    seconds = [f"{middle(key):.2f} s" for key in ("open_s", "first_s", "next_s")]
    return [*seconds, *(f"{middle(key) / 1024:.0f} MiB" for key in ("peak_kib", "before_kib"))]


if __name__ == "__main__":
    run(command, "footprint")
