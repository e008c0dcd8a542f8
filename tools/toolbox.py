"""What the scripts of this folder share: places, tables, pictures, kept results, and recipes with variants."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.files import atomic_path, write_text
from odm_deploy.installing import install_extra

if TYPE_CHECKING:
    from training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "data" / "samples"
"""The images that `make_samples.py` draws, laid out as a benchmark set."""
COMMAND = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Settings of every command."""

Thing = TypeVar("Thing")

set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override in every recipe.")
variant_option = click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Take every recipe once more with these settings; repeatable.",
)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in markdown, one line a row, ending with a line break."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def only_named(things: Mapping[str, Thing], wanted: str, what: str) -> dict[str, Thing]:
    """Things by name, only the one of the name that is wanted; all where that is empty.

    Raises:
        UsageError: there is none; `what` is what they are.
    """
    if wanted and wanted not in things:
        raise UsageError(f"--only {wanted}", why=f"there is no such {what}; there are {', '.join(things)}")
    return {name: thing for name, thing in things.items() if wanted in ("", name)}


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The document in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a training run's log, oldest first.

    Raises:
        InputError: there is no log, it is empty, or a line of it cannot be read.
    """
    path = folder / "log.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error), fix="name a run's folder") from None
    except ValueError as error:
        raise InputError(f"cannot read {path}", why=str(error)) from None
    if not records:
        raise InputError(f"nothing to read in {path}", why="it holds no record yet")
    return records


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result stored at `path`, measured first if it is not there yet; `{"failed": ...}` is not stored."""
    if path.exists():
        return read_json(path)
    click.echo(f"measuring {path.stem}", err=True)
    result = measure()
    if "failed" not in result:
        write_json(path, result)
    return result


def import_pyplot() -> Any:
    """`matplotlib.pyplot`, drawing into files.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingError("cannot draw", why=str(error), fix=install_extra("train")) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format its name says (png, svg, pdf) and close it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    import_pyplot().close(figure)


def legend_below(axis: Any) -> None:
    """A legend of the axis's own curves beneath it, where it covers nothing; in figures with constrained layout."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = max(1, min(len(labels), 60 // max(map(len, labels))))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), fontsize=6, ncols=columns, frameon=False)


def load_recipes(paths: Sequence[Path], overrides: Sequence[str], variants: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by name: every file, and every file with each variant's settings as `NAME,KEY=VALUE,...`.

    Raises:
        InputError: a recipe that cannot be read.
        UsageError: settings that cannot be read, or two recipes of the same name.
    """
    from training.recipe_files import load_recipe

    recipes: dict[str, Recipe] = {}
    for variant in ("", *variants):
        for path in paths:
            # Results are kept in folders of these names.
            name = f"{path.stem},{variant}".replace("/", "_") if variant else path.stem
            if name in recipes:
                raise UsageError("recipes of the same name", why=f"{name} comes twice")
            recipes[name] = load_recipe(path, [*overrides, *(variant.split(",") if variant else ())])
    return recipes


def run_python(*arguments: object, timeout_s: float | None = None) -> tuple[int, str, str]:
    """Run `python -m MODULE ...`, or `python FILE.py ...`, from the repository's root: exit code, stdout and stderr.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout_s`; nothing that it started goes on.
    """
    import signal
    import subprocess

    words = list(map(str, arguments))
    if not words[0].endswith(".py"):
        words = ["-m", *words]
    alone = sys.platform != "win32"
    # In a session of its own, so that what it has started in turn can be ended with it.
    running = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=alone,
    )
    try:
        output, errors = running.communicate(timeout=timeout_s)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL) if alone else running.kill()
        running.communicate()
        raise
    return running.returncode, output, errors
