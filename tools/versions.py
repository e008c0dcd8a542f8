"""The main job with the oldest and the newest versions of what this project stands on, and with every Python.

python tools/versions.py --python ~/.pyenv/versions/3.12.1/bin/python --out versions.json --only "Python 3.12"

Each row of the table is an environment of its own with the wheel of this folder in it: quantize, export, verify and
upscale with whatever runtimes it has. Needs `uv` (pip install uv), which installs in seconds what it installed before;
and some gigabytes, where PyTorch comes with CUDA. Ends with 1 if a row failed. Rows in --out are not run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from toolbox import COMMAND, ROOT, markdown_table, read_json, write_json

from odm_deploy.errors import MissingError
from odm_deploy.terminal import run

SHOWN = ("numpy", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")
"""Columns of the table."""
_LIMIT_S = 900
_REFERENCE = "tests/data/samples/LR_bicubic/X4"


@dataclass(frozen=True)
class Row:
    """An environment."""

    name: str
    python: str
    extras: str
    pins: tuple[str, ...] = ()
    oldest: bool = False
    """Whether the installer takes the lowest versions that are allowed of what this project names, not the highest."""


ROWS = (
    Row("oldest", "3.11", "export,cpu", oldest=True),
    Row("newest", "3.11", "export,cpu"),
    Row("oldest runtimes", "3.11", "cpu", oldest=True),
    Row("newest runtimes", "3.11", "cpu"),
    Row("Python 3.12", "3.12", "export,cpu"),
    Row("Python 3.13", "3.13", "export,cpu"),
    Row("Python 3.13, runtimes", "3.13", "cpu"),
    Row("Python 3.14", "3.14", "export,cpu"),
    Row("Python 3.14, runtimes", "3.14", "cpu"),
)


@click.command(context_settings=COMMAND)
@click.option("--only", multiple=True, type=click.Choice([row.name for row in ROWS]), help="Rows; all otherwise.")
@click.option("--python", "pythons", multiple=True, help="An interpreter beside those that are found by name.")
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="A bundle of profile exact, to prove.")
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="Float weights to quantize.")
@click.option("--pin", "pins", multiple=True, help="A further requirement, as for an upper limit of this machine.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file that results are kept in.")
def command(
    only: tuple[str, ...], pythons: tuple[str, ...], bundle: Path, weights: Path, pins: tuple[str, ...], out: Path
) -> None:
    """Make the environments, one after the other, and do the main job in each."""
    if shutil.which("uv") is None:
        raise MissingError("uv is not installed", fix="pip install uv")
    found = {_version_of(each): each for each in (sys.executable, *pythons)}
    kept: dict[str, Any] = read_json(out) if out.exists() else {}
    for row in ROWS:
        if row.name in kept or (only and row.name not in only):
            continue
        interpreter = found.get(row.python) or shutil.which(f"python{row.python}")
        if interpreter is None:
            click.echo(f"{row.name}: no Python {row.python} here")
            continue
        with tempfile.TemporaryDirectory(prefix="versions-") as folder:
            kept[row.name] = _tried(row, interpreter, pins, Path(folder), bundle.resolve(), weights.resolve())
        write_json(out, kept)
        click.echo(f"{row.name}: {kept[row.name]['outcome']}")
    head = ("environment", "Python", *SHOWN, "outcome")
    table = [
        (name, row["python"], *(row["versions"].get(package, "") for package in SHOWN), row["outcome"])
        for name, row in kept.items()
    ]
    click.echo(markdown_table(head, table))
    sys.exit(any(not row["passed"] for row in kept.values()))


def _version_of(interpreter: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _tried(
    row: Row, interpreter: str, pins: Sequence[str], folder: Path, bundle: Path, weights: Path
) -> dict[str, Any]:
    """Install, run, and say what happened."""
    environment = folder / "environment"
    python = environment / "bin" / "python"
    install = ["uv", "pip", "install", "-q", "--python", str(python)]
    install += ["--resolution", "lowest-direct"] if row.oldest else []
    done = _run("uv", "venv", "-q", "--python", interpreter, environment)
    done = done or _run(*install, f"odm-deploy[{row.extras}] @ {ROOT.as_uri()}", *row.pins, *pins)
    if done:
        return {"python": row.python, "versions": {}, "passed": False, "outcome": f"does not install: {done[-300:]}"}
    versions = json.loads(_output(python, "-c", _VERSIONS))
    outcome = _main_job(python, folder, bundle, weights, with_torch="export" in row.extras)
    return {"python": row.python, "versions": versions, "passed": not outcome, "outcome": outcome or "passes"}


_VERSIONS = f"""
import importlib.metadata as m, json
def of(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return ""
print(json.dumps({{name: of(name) for name in {SHOWN!r}}}))
"""


def _main_job(python: Path, folder: Path, bundle: Path, weights: Path, *, with_torch: bool) -> str:
    """What goes wrong in quantize, export, verify and upscale; empty for nothing."""
    odm: list[Any] = [python, "-P", "-m", "odm_deploy"]
    photo = folder / "photo.png"
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((48, 36), Image.Resampling.BICUBIC).save(photo)
    if with_torch:
        # Pixels of codes are shuffled there, which old runtimes cannot.
        profile = ("--profile", "exact-integer")
        options = ("--images", ROOT / _REFERENCE, "--max-images", 2, "--bits", 4, "--no-fit", *profile)
        problem = _run(*odm, "quantize", weights, *options, "-o", folder / "m.pt")
        problem = problem or _run(*odm, "export", folder / "m.pt", "-o", folder / "made", "--no-engine")
        if problem:
            return problem
    pictures = set[str]()
    for runtime in ("onnxruntime", "openvino"):
        words: list[Any] = ["--runtime", runtime]
        problem = _run(*odm, "verify", bundle, "--golden", *words)
        if with_torch:
            for each in (folder / "made", bundle):
                # The second was written by other versions, whose graph these lower the model.pt to again.
                problem = problem or _run(*odm, "verify", each, "--images", photo, *words)
        large = folder / f"{runtime}.png"
        problem = problem or _run(*odm, "upscale", photo, large, "--model", bundle, *words)
        if problem:
            return f"{runtime}: {problem}"
        with Image.open(large) as image:
            pictures.add(hashlib.sha256(image.tobytes()).hexdigest())
    return "" if len(pictures) == 1 else "the runtimes' pictures differ"


def _run(*words: Any) -> str:
    """Run a command outside of this folder; its last words if it fails."""
    line = [str(word) for word in words]
    done = subprocess.run(line, cwd="/", capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    return f"{' '.join(line[:6])}: {(done.stderr or done.stdout).strip()[-300:]}" if done.returncode else ""


def _output(*words: Any) -> str:
    line = [str(word) for word in words]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=_LIMIT_S).stdout


if __name__ == "__main__":
    run(command, "versions.py")
