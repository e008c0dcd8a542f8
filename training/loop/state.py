"""A run's folder, which belongs to one recipe, and its `last.pt`, all that a run needs to go on as if it never stopped.

    format     "odm-deploy training state"
    iteration  int                        optimizer steps done
    model      {key: tensor}              parameters and buffers
    optimizer  {...}                      Adam's moments
    average    {key: tensor}              moving average, may be empty
    best       {"psnr_db", "iteration", "model"}   the best validation so far, may be empty

There is no random state: batches depend on the seed and the iteration alone. Written atomically, read with
`weights_only=True`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odm_deploy.documents import mapping_of, read_json, taken_from
from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.torch_files import read_torch_file
from training.config import to_tables
from training.loop.step import MovingAverage
from training.model import TrainableModel
from training.recipe import Recipe

FORMAT = "odm-deploy training state"

# Settings a resumed run may change, because they do not change what is computed.
_FREE_SETTINGS = {
    ("run", "checkpoint_every"),
    ("run", "log_every"),
    ("run", "device"),
    ("run", "cuda_graphs"),
    ("run", "channels_last"),
    ("method", "remove_gates"),
}


@dataclass
class Progress:
    """How far a run is."""

    iteration: int = 0
    """Optimizer steps done."""
    best: dict[str, Any] = field(default_factory=dict[str, Any])
    """`psnr_db`, `iteration` and `model` of the best validation; empty before the first."""


def save_state(
    path: Path, model: TrainableModel, optimizer: torch.optim.Optimizer, average: MovingAverage, progress: Progress
) -> None:
    """Write the state, whole or not at all.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    document = {
        "format": FORMAT,
        "iteration": progress.iteration,
        "model": model.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.values,
        "best": progress.best,
    }
    try:
        with atomic_path(path) as temporary:
            torch.save(document, temporary)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its archive writer; what was saved before is still there.
        raise InputError(
            f"cannot write {path}",
            why=str(error).splitlines()[0][:200],
            fix="make room on the disk; the same command resumes from the state before",
        ) from None


def load_state(path: Path, model: TrainableModel, optimizer: torch.optim.Optimizer, average: MovingAverage) -> Progress:
    """Restore a run in place.

    Raises:
        InputError: not a training state, damaged, or of another network or method.
    """
    document = read_torch_file(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path} is not a training state", fix="choose another --out")
    try:
        model.network.load_state_dict(document["model"])
        adam: dict[str, Any] = document["optimizer"]
        # How Adam runs belongs to the device it now runs on.
        for group in adam["param_groups"]:
            group["fused"] = optimizer.defaults["fused"]
        optimizer.load_state_dict(adam)
        values: dict[str, Tensor] = document["average"]
        average.values = {
            name: value.to(next(iter(model.network.parameters())).device) for name, value in values.items()
        }
        return Progress(int(document["iteration"]), document["best"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot resume from {path}", why=reason[:200], fix="choose another --out") from None


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that belongs to a run with other settings.

    Raises:
        UsageError: it does; the line names them.
        InputError: its config.json cannot be read.
    """
    path = folder / "config.json"
    if not (folder / "last.pt").exists() or not path.exists():
        return
    with taken_from(path):
        changed = _differences(mapping_of(read_json(path), "a recipe"), to_tables(recipe))
    if changed:
        raise UsageError(
            f"{folder} belongs to another run", why="; ".join(changed[:4]), fix="choose another --out, or remove it"
        )


def claim_folder(folder: Path, recipe: Recipe) -> None:
    """Make the run's folder and write the resolved recipe into it.

    Raises:
        InputError: the folder cannot be written to.
    """
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(to_tables(recipe), indent=2) + "\n", encoding="utf-8")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two resolved recipes disagree on. Settings that the older one does not know had their default value."""
    defaults = to_tables(Recipe())
    before = {
        section: {**(defaults.get(section, {}) if section != "method" else {}), **before.get(section, {})}
        for section in defaults
    }
    free = set(_FREE_SETTINGS)
    if now["optimizer"]["schedule"] != "cosine":
        # Only a cosine depends on where the run ends.
        free.add(("run", "iterations"))
    return [
        f"{section}.{key} was {before.get(section, {}).get(key)!r}, now {now.get(section, {}).get(key)!r}"
        for section in sorted(before.keys() | now.keys())
        for key in sorted(before.get(section, {}).keys() | now.get(section, {}).keys())
        if (section, key) not in free and before.get(section, {}).get(key) != now.get(section, {}).get(key)
    ]
