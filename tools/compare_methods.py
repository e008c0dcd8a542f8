"""Train several methods under one protocol and write one table: same weights, images, seed, batch and iterations.

    python tools/compare_methods.py training/recipes/edsr_x4_odm_w4a4.toml --variant=method={lsq,minmax} \
        --iterations 2000 --out runs/w4a4

Each recipe, and each variant of it, trains in a folder of its own under --out. Killed at any time, the same command
goes on where it stopped; methods already measured are not trained again. Writes results.json, results.md and, where
matplotlib is installed, results.png, of everything measured under --out; without recipes it does only that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from toolbox import (
    COMMAND,
    import_pyplot,
    load_recipes,
    markdown_table,
    read_json,
    read_log,
    save_figure,
    set_option,
    variant_option,
    write_json,
    write_text,
)
from torch import Tensor

from odm_deploy.accounting import account
from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.proof.evaluation import Score, evaluate, upscaler_of
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.terminal import run, say
from training.config import to_tables
from training.distributed import World
from training.loop.preparation import load_float_network
from training.loop.run import train
from training.methods.registry import build_method
from training.recipe import Recipe
from training.recipe_files import expand_places


@dataclass(frozen=True)
class Result:
    """One row of the table."""

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


@click.command(context_settings=COMMAND)
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the comparison.")
@click.option(
    "--iterations", type=click.IntRange(min=1), help="Optimizer steps for every recipe; default: the recipes'."
)
@variant_option
@set_option
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    default=("{data}/benchmark/Set5", "{data}/benchmark/Set14"),
    show_default=True,
    help="Folder of a test set; repeatable.",
)
def command(
    recipes: tuple[Path, ...],
    out: Path,
    iterations: int | None,
    variants: tuple[str, ...],
    overrides: tuple[str, ...],
    benchmarks: tuple[str, ...],
) -> None:
    """Train every one of RECIPES for as many iterations and compare what comes out."""
    budget = [f"run.iterations={iterations}"] if iterations else []
    loaded = load_recipes(recipes, [*overrides, *budget], variants)
    check_same_protocol(loaded)
    for number, (name, recipe) in enumerate(loaded.items(), start=1):
        if number == 1:
            measure_start(recipe, out / "start", benchmarks)
        say(f"[{number}/{len(loaded)}] {name}")
        measure(name, recipe, out / name, benchmarks)
        write_tables(stored_results(out), out)
    write_tables(stored_results(out), out)
    say(f"wrote {out / 'results.md'}")


def check_same_protocol(recipes: dict[str, Recipe]) -> None:
    """Refuse comparisons of unlike runs.

    Raises:
        UsageError: recipes that differ in network, images, seed, batch or iterations.
    """
    protocols = {
        name: (recipe.network, recipe.data, recipe.run.seed, recipe.run.batch, recipe.run.iterations)
        for name, recipe in recipes.items()
    }
    first_name, first = next(iter(protocols.items()), ("", None))
    for name, protocol in protocols.items():
        if protocol != first:
            raise UsageError(
                f"{name} and {first_name} cannot be compared",
                why="their network, data, seed, batch or iterations differ",
                fix="override them with --set",
            )


def measure(name: str, recipe: Recipe, folder: Path, benchmarks: tuple[str, ...]) -> None:
    """Train (or finish, or just look up) one recipe and measure it."""
    path, key = folder / "result.json", {"recipe": to_tables(recipe), "benchmarks": list(benchmarks)}
    if path.exists() and read_json(path)["key"] == key:
        return
    model = train(recipe, folder, World())
    model.network.eval()
    method = build_method(recipe.method)
    result = Result(
        recipe=name,
        method=method.name,
        width=recipe.quantization.body if method.quantizes else "float",
        iterations=recipe.run.iterations,
        **benchmark_scores(model, recipe, benchmarks, recipe.run.device),
        **costs(model.float_network(), recipe.quantization.policy() if method.quantizes else None),
        seconds_per_step=seconds_per_step(folder),
        exportable=method.why_not_exportable() or "yes",
    )
    write_json(path, {"key": key, "result": asdict(result)})


def measure_start(recipe: Recipe, folder: Path, benchmarks: tuple[str, ...]) -> None:
    """The float network that all recipes start from, untouched."""
    network = load_float_network(recipe)
    result = Result(
        recipe="start",
        method="float",
        width="float",
        iterations=0,
        **benchmark_scores(network, recipe, benchmarks),
        **costs(network, None),
        seconds_per_step=0.0,
        exportable="yes",
    )
    write_json(folder / "result.json", {"key": {}, "result": asdict(result)})


def benchmark_scores(
    network: Callable[[Tensor], Tensor], recipe: Recipe, benchmarks: tuple[str, ...], device: str = "cpu"
) -> dict[str, Any]:
    """PSNR and SSIM by test set, as fields of a `Result`."""
    scores: dict[str, Score] = {}
    for place in map(expand_places, benchmarks):
        pairs = (file.load() for file in find_pairs(place, recipe.network.scale))
        scores[place.name] = evaluate(upscaler_of(network, device), pairs, recipe.network.scale).mean
    return {
        "psnr_y_db": {place: value.psnr_y_db for place, value in scores.items()},
        "ssim_y": {place: value.ssim_y for place, value in scores.items()},
    }


def costs(network: SuperResolutionNetwork, policy: QuantizationPolicy | None) -> dict[str, Any]:
    """Storage and bit operations, as fields of a `Result`."""
    cost = account(network, policy)
    return {"storage_mb": cost.storage_bytes / 1e6, "bit_operations_t": cost.bit_operations / 1e12}


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


def seconds_per_step(folder: Path) -> float:
    """Wall time of a step, from the last record of a run that made any."""
    rates = [record["iterations_per_s"] for record in read_log(folder) if record.get("iterations_per_s")]
    if not rates:
        raise InputError(f"the log in {folder} holds no step", fix="remove the folder and train again")
    return 1.0 / rates[-1]


def write_tables(results: list[Result], out: Path) -> None:
    """results.json, results.md and, where it can be drawn, results.png."""
    write_json(out / "results.json", [asdict(result) for result in results])
    write_text(out / "results.md", markdown(results))
    try:
        pyplot = import_pyplot()
    except MissingError:
        return
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(results) + 1.5), layout="constrained")
    place = next(iter(results[0].psnr_y_db))
    names = [result.recipe for result in results]
    values = [result.psnr_y_db[place] for result in results]
    axes.barh(names, values)
    axes.invert_yaxis()
    axes.set_xlim(min(values) - 0.3, max(values) + 0.1)
    axes.set_xlabel(f"PSNR-Y on {place} (dB)")
    save_figure(figure, out / "results.png")


def markdown(results: list[Result]) -> str:
    """The table, best first within each width; differences are against the float network all start from."""
    places = list(results[0].psnr_y_db)
    start = results[0]
    head = ["recipe", "method", "bits", "iterations"]
    head += [f"{place} PSNR / SSIM (drop)" for place in places]
    head += ["storage MB", "BitOPs T", "s / step", "exportable"]
    rows: list[list[str]] = []
    for result in sorted(results, key=lambda r: (r.width != "float", r.width[::-1], -r.psnr_y_db[places[0]])):
        cells = [result.recipe, result.method, result.width, str(result.iterations)]
        cells += [
            f"{result.psnr_y_db[p]:.3f} / {result.ssim_y[p]:.4f} ({result.psnr_y_db[p] - start.psnr_y_db[p]:+.3f})"
            for p in places
        ]
        cells += [f"{result.storage_mb:.2f}", f"{result.bit_operations_t:.1f}"]
        cells += [f"{result.seconds_per_step:.2f}" if result.iterations else "", result.exportable]
        rows.append(cells)
    return markdown_table(head, rows)


if __name__ == "__main__":
    run(command, "compare_methods")
