"""What `compare_methods.py` has measured, as a table with intervals over seeds, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from toolbox import import_pyplot, markdown_table, read_json, save_figure, write_json, write_text

from odm_deploy.errors import InputError, MissingError

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond them the normal one is near enough.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.960


@dataclass(frozen=True)
class Result:
    """One run."""

    recipe: str
    """File name of the recipe without suffix, and the variant's settings; `start` for the network all start from."""
    method: str
    width: str
    """Width of the body, such as w4a4."""
    iterations: int
    psnr_y_db: dict[str, float]
    """Mean over the images, by test set; so is SSIM."""
    ssim_y: dict[str, float]
    storage_mb: float
    """Weights, scales and everything else of the network, in 10^6 bytes."""
    bit_operations_t: float
    """10^12 bit operations for one full-HD output."""
    seconds_per_step: float
    """Wall time on this machine."""
    exportable: str
    """`yes`, or why not."""
    seed: int = 1
    """Of patches and fresh parameters."""


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean (Student's t); None: one value has none."""
    degrees = len(values) - 1
    if degrees < 1:
        return None
    quantile = _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else _NORMAL
    return quantile * stdev(values) / math.sqrt(len(values))


def stored_results(out: Path) -> list[Result]:
    """Everything measured under `out`, the float network all start from first.

    Raises:
        InputError: nothing has been measured there.
    """
    stored = [Result(**read_json(path)["result"]) for path in sorted(out.glob("*/result.json"))]
    results = sorted(stored, key=lambda result: result.iterations > 0)
    if not results or results[0].iterations:
        raise InputError(f"nothing to compare in {out}", fix="name recipes to train")
    return results


def write_tables(results: list[Result], out: Path) -> None:
    """results.json, results.md and, where it can be drawn, results.png."""
    write_json(out / "results.json", [asdict(result) for result in results])
    write_text(out / "results.md", markdown(results))
    try:
        pyplot = import_pyplot()
    except MissingError:
        return
    place = next(iter(results[0].psnr_y_db))
    groups = sorted(_by_recipe(results), key=lambda runs: _order(runs, place))
    figure, axes = pyplot.subplots(figsize=(7, 0.3 * len(groups) + 1.2), layout="constrained")
    for row, runs in enumerate(groups):
        values = [run.psnr_y_db[place] for run in runs]
        axes.plot(values, [row] * len(values), ".", color="silver")
        axes.errorbar(fmean(values), row, xerr=half_width(values), fmt="o", color="tab:blue", capsize=3)
    axes.set_yticks(range(len(groups)), [runs[0].recipe for runs in groups])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"PSNR-Y on {place} (dB): seeds, their mean and its 95 % interval")
    save_figure(figure, out / "results.png")


def markdown(results: list[Result]) -> str:
    """The table, best first within each width; differences are against the float network all start from."""
    places = list(results[0].psnr_y_db)
    start = results[0]
    head = ["recipe", "method", "bits", "iterations", "seeds"]
    head += [f"{place} PSNR / SSIM (drop)" for place in places]
    head += ["storage MB", "BitOPs T", "s / step", "exportable"]
    rows: list[list[str]] = []
    for runs in sorted(_by_recipe(results), key=lambda runs: _order(runs, places[0])):
        first = runs[0]
        cells = [first.recipe, first.method, first.width, str(first.iterations), str(len(runs))]
        cells += [_score(runs, start, place) for place in places]
        cells += [f"{first.storage_mb:.2f}", f"{first.bit_operations_t:.1f}"]
        cells += [f"{fmean(run.seconds_per_step for run in runs):.2f}" if first.iterations else "", first.exportable]
        rows.append(cells)
    return markdown_table(head, rows) + _note(results)


def _score(runs: Sequence[Result], start: Result, place: str) -> str:
    values = [run.psnr_y_db[place] for run in runs]
    width = half_width(values)
    around = "" if width is None else f" ± {width:.3f}"
    ssim = fmean(run.ssim_y[place] for run in runs)
    return f"{fmean(values):.3f}{around} / {ssim:.4f} ({fmean(values) - start.psnr_y_db[place]:+.3f})"


def _note(results: Iterable[Result]) -> str:
    single = [runs[0].recipe for runs in _by_recipe(results) if runs[0].iterations and len(runs) == 1]
    said = "\n± is half of the 95 % interval of the mean over seeds (Student's t); the images are the same for all.\n"
    if single:
        said += f"One seed only, which is no evidence for tenths of a decibel: {', '.join(single)}.\n"
    return said


def _order(runs: Sequence[Result], place: str) -> tuple[bool, str, float]:
    first = runs[0]
    return first.width != "float", first.width[::-1], -fmean(run.psnr_y_db[place] for run in runs)


def _by_recipe(results: Iterable[Result]) -> list[list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.recipe, []).append(result)
    return list(groups.values())
