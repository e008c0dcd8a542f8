"""The ODM papers' tables, one command each: what to train, how long that takes, and which cell it fills.

    python tools/paper.py --dry-run                  list all runs, hours and cells
    python tools/paper.py --table 5 --out runs/paper train and measure what is missing of one table
    make paper                                       all of them (ARGS=... hands options on)

Needs DIV2K's images in {data}/train/DIV2K_train_HR and DIV2K_801_810, the benchmark sets, the public float weights and
a GPU. Killed at any time, the same command goes on where it stopped. On a CPU one cell can be run small, to see that it
works:

    python tools/paper.py --cell 5/max --iterations 4 --device cpu --set data.folders=/photos \
        --set data.validation_folders=[] --set network.weights=/edsr_x4.pt --benchmark /photos/Set5 --out runs/small

Figures of what is trained there so far, with the same --set and --device:

    python tools/paper.py --figures --device cpu --set ... --out runs/small

Training images are decoded once and kept in OUT/cache (or $ODM_CACHE). Table 4, storage and operations, trains nothing:
`python tools/accounting.py`, with --method for what a method adds. Figures are drawn by `paper_figures.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import click
from compare_methods import check_benchmarks, measure
from comparison_table import Result, half_width
from paper_figures import draw_figures
from toolbox import COMMAND, ROOT, markdown_table, read_json, set_option, write_text

from odm_deploy.errors import UsageError
from odm_deploy.terminal import run, say
from training.image_cache import CACHE
from training.recipe import Recipe
from training.recipe_files import load_recipe

RECIPES = ROOT / "training" / "recipes"
DIV2K = (
    'data.folders=["{data}/train/DIV2K_train_HR"]',
    'data.validation_folders=["{data}/train/DIV2K_801_810"]',
    "data.validation_psnr=rgb",
    "data.small_images=refuse",
)
ON_GPU = ("run.device=cuda", "run.cuda_graphs=true", "run.compile=true", "run.channels_last=true")
STEPS_PER_SECOND = 89.0
"""Of ODM v2 on EDSR-baseline x4 at batch 8 on an H100 (docs/measurements/gpu.md)."""
# Multiplications of a step relative to EDSR-baseline x4 (tools/accounting.py); RDN has patches of a quarter the size.
# SwinIR's is a guess: attention is many small kernels.
_WORK = {"edsr": 1.0, "srresnet": 1.1, "rdn": 2.9, "swinir": 4.0}


@dataclass(frozen=True)
class Cell:
    """A row of a table at one width: one run a seed."""

    name: str
    """Table, row, and width where the row has several, e.g. `1/ddtb/w2a2`."""
    recipe: str
    """File in `training/recipes`."""
    settings: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The table's number."""
        return self.name.split("/")[0]


def _rows(table: int, network: str, methods: dict[str, tuple[str, tuple[str, ...]]], bits: str) -> list[Cell]:
    return [
        Cell(f"{table}/{network}-{method}/w{width}a{width}", recipe, (*settings, f"bits=w{width}a{width}"))
        for method, (recipe, settings) in methods.items()
        for width in bits
    ]


def _methods(network: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    base = f"{network}_x4_odm_w4a4.toml"
    named = {"pams": f"{network}_x4_pams_w4a4.toml", "ddtb": f"{network}_x4_ddtb_w4a4.toml"}
    found = {name: file for name, file in named.items() if (RECIPES / file).exists()}
    return {
        "pams": (found.get("pams", base), ("method=pams",)),
        "ddtb": (found.get("ddtb", base), ("method=ddtb",)),
        "daq": (base, ("method=daq",)),
        "odm_v1": (base, ("method=odm_v1",)),
        "odm_v2": (base, ()),
    }


_MAX = ("bits=w2a2", "method.clipping=percentile", "method.weight_percentile=100")
_WCC = ("bits=w2a2",)
_EDSR = "edsr_x4_odm_w4a4.toml"
_V1 = ("method=odm_v1", "bits=w2a2", "method.free=true", "method.free_weights=true", "method.regularize_ranges=true")
CELLS = [
    *_rows(1, "edsr", _methods("edsr"), "432"),
    *_rows(1, "rdn", _methods("rdn"), "432"),
    *_rows(2, "srresnet", _methods("srresnet"), "432"),
    *_rows(3, "swinir", {"odm_v2": ("swinir_x4_odm_w4a4.toml", ("run.iterations=300000",))}, "2"),
    Cell("5/max", _EDSR, (*_MAX, "method.mismatch_weight=0.0")),
    Cell("5/max+naive", _EDSR, (*_MAX, "method.update=naive")),
    Cell("5/max+cooperative", _EDSR, _MAX),
    Cell("5/learned", _EDSR, (*_WCC, "method.clipping=learned", "method.mismatch_weight=0.0")),
    Cell("5/corrected", _EDSR, (*_WCC, "method.mismatch_weight=0.0")),
    Cell("5/corrected+naive", _EDSR, (*_WCC, "method.update=naive")),
    Cell("5/odm_v2", _EDSR, _WCC),
    Cell("5/v1-baseline", _EDSR, (*_V1, "method.variance_weight=0.0", "method.offset_share=0.0")),
    Cell("5/v1-naive", _EDSR, (*_V1, "method.cooperative=false", "method.offset_share=0.0")),
    Cell("5/v1-cooperative", _EDSR, (*_V1, "method.offset_share=0.0")),
    Cell("5/v1-full", _EDSR, _V1),
]


@click.command(context_settings=COMMAND)
@click.option("--table", "tables", multiple=True, type=click.Choice(["1", "2", "3", "5"]), help="Only it; repeatable.")
@click.option("--cell", "names", multiple=True, metavar="NAME", help="Only this cell, as listed; repeatable.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Runs a cell.")
@click.option("--iterations", type=click.IntRange(min=1), help="A smaller budget than the papers'.")
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["cuda", "cpu"]), help="Where to train.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    default=tuple(f"{{data}}/benchmark/{name}" for name in ("Set5", "Set14", "B100", "Urban100")),
    show_default=True,
    help="Folder of a test set; repeatable.",
)
@set_option
@click.option("--out", default="runs/paper", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--dry-run", is_flag=True, help="List runs, hours and cells; train nothing.")
@click.option("--figures", is_flag=True, help="Draw the figures of what is trained so far; train nothing.")
def command(
    tables: tuple[str, ...],
    names: tuple[str, ...],
    seeds: int,
    iterations: int | None,
    device: str,
    benchmarks: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path,
    dry_run: bool,
    figures: bool,
) -> None:
    """Train and measure what is missing of the papers' tables."""
    cells = chosen(tables, names)
    budget = [f"run.iterations={iterations}"] if iterations else []
    extra = [*(ON_GPU if device == "cuda" else ()), *overrides, *budget]
    recipes = {cell: load_recipe(RECIPES / cell.recipe, [*DIV2K, *cell.settings, *extra]) for cell in cells}
    if dry_run:
        click.echo(plan(recipes, seeds), nl=False)
        return
    os.environ.setdefault(CACHE, str(out / "cache"))
    if figures:
        folders = {cell.name: folder_of(out, cell, 1) for cell in cells}
        for path in draw_figures(next(iter(recipes.values())), folders, out):
            say(f"wrote {path}")
        return
    check_benchmarks(benchmarks, next(iter(recipes.values())).network.scale)
    for seed in range(1, seeds + 1):
        for cell, recipe in recipes.items():
            say(f"{cell.name}, seed {seed}")
            seeded = replace(recipe, run=replace(recipe.run, seed=seed))
            measure(cell.name, seeded, folder_of(out, cell, seed), benchmarks)
            write_text(out / "paper.md", filled(out, recipes, seeds))
    say(f"wrote {out / 'paper.md'}")


def chosen(tables: tuple[str, ...], names: tuple[str, ...]) -> list[Cell]:
    """The cells of some tables, or those named; all of them without either.

    Raises:
        UsageError: no cell of that name.
    """
    known = {cell.name for cell in CELLS}
    for name in names:
        if name not in known:
            raise UsageError(f"no cell {name}", fix="--dry-run lists them")
    return [cell for cell in CELLS if (not tables or cell.table in tables) and (not names or cell.name in names)]


def folder_of(out: Path, cell: Cell, seed: int) -> Path:
    """Where a run of a cell is kept."""
    return out / f"{cell.name.replace('/', '_')},seed={seed}"


def hours(recipe: Recipe) -> float:
    """Expected training time of one run on one GPU."""
    return recipe.run.iterations * _WORK[recipe.network.name] / STEPS_PER_SECOND / 3600


def plan(recipes: dict[Cell, Recipe], seeds: int) -> str:
    """What would be trained: a table, and the sum of hours."""
    rows = [
        [cell.name, recipe.method["name"], recipe.quantization.body, recipe.run.iterations, f"{hours(recipe):.2f}"]
        for cell, recipe in recipes.items()
    ]
    total = seeds * sum(map(hours, recipes.values()))
    return (
        markdown_table(["cell", "method", "bits", "iterations", "hours a seed"], rows)
        + f"\n{len(rows)} cells x {seeds} seeds: about {total:.0f} hours on one GPU of {STEPS_PER_SECOND} steps/s "
        "(measured with ODM v2 on EDSR; other networks are estimates). Table 4 trains nothing: tools/accounting.py.\n"
    )


def filled(out: Path, recipes: dict[Cell, Recipe], seeds: int) -> str:
    """The cells measured so far: PSNR-Y, mean and half width of its 95 % interval over seeds."""
    rows: list[list[object]] = []
    places: list[str] = []
    for cell in recipes:
        paths = [folder_of(out, cell, seed) / "result.json" for seed in range(1, seeds + 1)]
        results = [Result(**read_json(path)["result"]) for path in paths if path.exists()]
        if not results:
            continue
        places = list(results[0].psnr_y_db)
        values = [[result.psnr_y_db[place] for result in results] for place in places]
        widths = map(half_width, values)
        around = ["" if width is None else f" ± {width:.3f}" for width in widths]
        cells = [f"{fmean(each):.3f}{width}" for each, width in zip(values, around, strict=True)]
        rows.append([cell.name, results[0].iterations, len(results), *cells])
    return markdown_table(["cell", "iterations", "seeds", *places], rows)


if __name__ == "__main__":
    run(command, "paper")
