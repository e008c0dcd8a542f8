"""Draw what training runs logged: loss, validation, the conflict of ODM's two gradients, mismatch, and ranges.

    python tools/plot_training.py runs/w2a2 runs/other -o curves.png

One curve a run. Ranges are those of the first run, one line a layer, relative to where they started: what the range
learning rate really did. Conflicts are those of ODM v2's Fig. 2: the share of parameters whose derivatives of the two
losses have opposite signs, and the mean cosine of the two gradients over parameter tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from toolbox import COMMAND, import_pyplot, legend_below, read_log, save_figure

from odm_deploy.terminal import run, say

_WINDOW = 25  # logged values behind each point of a smoothed curve
_COLUMNS = 3

# Key in log.jsonl, title of the panel, whether the curve is a running mean.
_PANELS = (
    ("loss", "reconstruction loss", True),
    ("validation_psnr_db", "validation PSNR (dB)", False),
    ("conflict_scalars", "share of parameters in conflict", True),
    ("cosine", "cosine of the two gradients", True),
    ("mismatch", "mismatch", True),
)


@click.command(context_settings=COMMAND)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Image to write (png, svg, pdf).")
def command(runs: tuple[Path, ...], output: Path) -> None:
    """Plot the log.jsonl of RUNS."""
    logs = {folder.name: read_log(folder) for folder in runs}
    draw(logs, output)
    say(f"wrote {output}")


def series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Iterations and values of the records that have `key`."""
    pairs = [(int(record["iteration"]), float(record[key])) for record in records if key in record]
    return [iteration for iteration, _ in pairs], [value for _, value in pairs]


def running_mean(values: Sequence[float], window: int = _WINDOW) -> list[float]:
    """The mean of the last `window` values at each place; of fewer where there are not so many yet."""
    return [sum(values[max(0, end - window) : end]) / (end - max(0, end - window)) for end in range(1, len(values) + 1)]


def relative_widths(records: Sequence[dict[str, Any]]) -> tuple[list[int], dict[str, list[float]]]:
    """Width of every layer's range at each validation, divided by its width at the first."""
    logged = [record for record in records if record.get("ranges")]
    iterations = [int(record["iteration"]) for record in logged]
    names = list(logged[0]["ranges"]) if logged else []
    widths = {name: [record["ranges"][name][1] - record["ranges"][name][0] for record in logged] for name in names}
    return iterations, {name: [value / values[0] for value in values] for name, values in widths.items()}


def draw(logs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """One figure of all panels that the logs have data for."""
    pyplot = import_pyplot()
    panels = [panel for panel in _PANELS if any(series(records, panel[0])[0] for records in logs.values())]
    iterations, widths = relative_widths(next(iter(logs.values())))
    count = len(panels) + bool(widths)
    rows = -(-count // _COLUMNS)
    size = (3.6 * _COLUMNS, (2.9 + 0.12 * len(logs)) * rows)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=size, squeeze=False, layout="constrained")
    axes = grid.flatten()
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, (key, title, smooth) in zip(axes, panels, strict=False):
        for name, records in logs.items():
            places, values = series(records, key)
            if places:
                axis.plot(places, running_mean(values) if smooth else values, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration")
        legend_below(axis)
    if widths:
        axis = axes[len(panels)]
        for values in widths.values():
            axis.plot(iterations, values, linewidth=0.6)
        axis.set_title(f"relative range widths, {next(iter(logs))}", fontsize=9)
        axis.set_xlabel("iteration")
    save_figure(figure, output)


if __name__ == "__main__":
    run(command, "plot_training")
