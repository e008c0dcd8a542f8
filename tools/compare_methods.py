"""Train several methods under one protocol and write one table: same weights, images, seeds, batch and iterations.

    python tools/compare_methods.py training/recipes/edsr_x4_odm_w4a4.toml --variant=method={lsq,minmax} \
        --iterations 2000 --seeds 1,2,3 --out runs/w4a4

Each recipe, and each variant of it, trains once a seed, in folders of their own under --out. With several seeds the
table has means and the half width of their 95 % intervals. Killed at any time, the same command goes on where it
stopped; what is measured already is not trained again, so seeds and methods may be added later. Started several times
at once, its processes share the runs: networks this small leave most of a GPU idle. Seeds go round: every method has
its first before any has its second. Writes results.json, results.md and, where matplotlib is installed, results.png,
of everything measured under --out; without recipes it does only that.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from comparison_table import Result, stored_results, write_tables
from toolbox import COMMAND, load_recipes, read_json, read_log, set_option, variant_option, write_json
from torch import Tensor

from odm_deploy.accounting import account
from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.proof.evaluation import Score, evaluate, upscaler_of
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.terminal import run, say
from training.acceleration import exact_evaluation
from training.config import from_tables, to_tables
from training.distributed import World
from training.loop.preparation import load_float_network
from training.loop.run import train
from training.methods.registry import build_method
from training.model import TrainableModel
from training.overhead import with_overhead
from training.recipe import Recipe
from training.recipe_files import existing_place, expand_places


@click.command(context_settings=COMMAND)
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the comparison.")
@click.option(
    "--iterations", type=click.IntRange(min=1), help="Optimizer steps for every recipe; default: the recipes'."
)
@click.option("--seeds", metavar="N,N,...", help="Train with each of these seeds; default: the recipes' own.")
@click.option(
    "--own-budgets",
    is_flag=True,
    help="Let batch, patch and iterations differ: full-budget recipes, each as its authors trained it.",
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
    seeds: str | None,
    own_budgets: bool,
    variants: tuple[str, ...],
    overrides: tuple[str, ...],
    benchmarks: tuple[str, ...],
) -> None:
    """Train every one of RECIPES for as many iterations and compare what comes out."""
    budget = [f"run.iterations={iterations}"] if iterations else []
    loaded = load_recipes(recipes, [*overrides, *budget], variants)
    check_same_protocol(loaded, own_budgets=own_budgets)
    runs = with_seeds(loaded, seeds)
    for number, (name, recipe) in enumerate(runs, start=1):
        if number == 1:
            check_benchmarks(benchmarks, recipe.network.scale)
            with claimed(out / "start", wait=True):
                measure_start(recipe, out / "start", benchmarks)
        say(f"[{number}/{len(runs)}] {name}, seed {recipe.run.seed}")
        folder = out / (f"{name},seed={recipe.run.seed}" if seeds else name)
        with claimed(folder) as mine:
            if not mine:
                say("another process trains it")
                continue
            measure(name, recipe, folder, benchmarks)
        write_tables(stored_results(out), out)
    write_tables(stored_results(out), out)
    say(f"wrote {out / 'results.md'}")


def with_seeds(recipes: dict[str, Recipe], seeds: str | None) -> list[tuple[str, Recipe]]:
    """Every recipe with every seed of a list such as `1,2,3`, the first seed of all recipes first.

    Raises:
        UsageError: no such list.
    """
    if seeds is None:
        return list(recipes.items())
    numbers = seeds.split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise UsageError(f"cannot use --seeds {seeds}", fix="write different whole numbers, such as 1,2,3")
    return [
        (name, replace(recipe, run=replace(recipe.run, seed=int(number))))
        for number in numbers
        for name, recipe in recipes.items()
    ]


def check_same_protocol(recipes: dict[str, Recipe], *, own_budgets: bool) -> None:
    """Refuse comparisons of unlike runs.

    Raises:
        UsageError: recipes that differ in network, images or seed, or, without `own_budgets`, in batch or iterations.
    """

    def protocol_of(recipe: Recipe) -> tuple[object, ...]:
        # Evened out, the float network computes the same: that is a start, which is a method's own.
        network = replace(recipe.network, equalize=False)
        if own_budgets:
            return (network, recipe.data.folders, recipe.run.seed)
        return (network, recipe.data, recipe.run.seed, recipe.run.batch, recipe.run.iterations)

    protocols = {name: protocol_of(recipe) for name, recipe in recipes.items()}
    first_name, first = next(iter(protocols.items()), ("", None))
    for name, protocol in protocols.items():
        if protocol != first:
            raise UsageError(
                f"{name} and {first_name} cannot be compared",
                why=f"their network, images{' or seed' if own_budgets else ', seed, batch or iterations'} differ",
                fix="override them with --set" + ("" if own_budgets else ", or allow other budgets with --own-budgets"),
            )


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Generator[bool, None, None]:
    """Whether this process may train in `folder`. No other one then may until the block, or the process, ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def measure(name: str, recipe: Recipe, folder: Path, benchmarks: tuple[str, ...]) -> None:
    """Train (or finish, or just look up) one recipe and measure it."""
    path, key = folder / "result.json", {"recipe": to_tables(recipe), "benchmarks": list(benchmarks)}
    if path.exists() and _is_of(read_json(path)["key"], recipe, benchmarks):
        return
    model = train(recipe, folder, World())
    model.network.eval()
    method = build_method(recipe.method)
    with exact_evaluation():
        scores = benchmark_scores(model, recipe, benchmarks, recipe.run.device)
    result = Result(
        recipe=name,
        method=method.name,
        width=recipe.quantization.body if method.quantizes else "float",
        iterations=recipe.run.iterations,
        **scores,
        **costs(model.float_network(), recipe.quantization.policy() if method.quantizes else None, model),
        seconds_per_step=seconds_per_step(folder),
        exportable=method.why_not_exportable() or "yes",
        seed=recipe.run.seed,
    )
    write_json(path, {"key": key, "result": asdict(result)})


def _is_of(key: dict[str, Any], recipe: Recipe, benchmarks: tuple[str, ...]) -> bool:
    """Whether a kept result is that of a recipe; settings that are newer than it had their default."""
    try:
        return key["benchmarks"] == list(benchmarks) and from_tables(Recipe, key["recipe"]) == recipe
    except (KeyError, OdmError):
        return False


def check_benchmarks(benchmarks: tuple[str, ...], scale: int) -> None:
    """Find every test set before training, not hours after its start.

    Raises:
        InputError: a folder that is not there or holds no images.
    """
    for place in benchmarks:
        find_pairs(existing_place(place, "--benchmark"), scale)


def measure_start(recipe: Recipe, folder: Path, benchmarks: tuple[str, ...]) -> None:
    """The float network that all recipes start from, untouched; measured once."""
    key = {"network": to_tables(recipe)["network"], "benchmarks": list(benchmarks)}
    path = folder / "result.json"
    if path.exists() and read_json(path)["key"] == key:
        return
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
    write_json(path, {"key": key, "result": asdict(result)})


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


def costs(
    network: SuperResolutionNetwork, policy: QuantizationPolicy | None, model: TrainableModel | None = None
) -> dict[str, Any]:
    """Storage and bit operations, with what the quantizers of a trained `model` add, as fields of a `Result`."""
    cost = account(network, policy)
    if model is not None:
        cost = with_overhead(cost, model, "honest")
    return {"storage_mb": cost.storage_bytes / 1e6, "bit_operations_t": cost.bit_operations / 1e12}


def seconds_per_step(folder: Path) -> float:
    """Wall time of a step, from the last record of a run that made any."""
    rates = [record["iterations_per_s"] for record in read_log(folder) if record.get("iterations_per_s")]
    if not rates:
        raise InputError(f"the log in {folder} holds no step", fix="remove the folder and train again")
    return 1.0 / rates[-1]


if __name__ == "__main__":
    run(command, "compare_methods")
