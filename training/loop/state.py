"""`last.pt`: everything a run needs to go on as if it had never stopped.

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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.files import atomic_path
from odm_deploy.torch_files import read_torch_file
from training.loop.optimizer import MovingAverage
from training.model import TrainableModel

FORMAT = "odm-deploy training state"


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
        optimizer.load_state_dict(document["optimizer"])
        values: dict[str, Tensor] = document["average"]
        average.values = {
            name: value.to(next(iter(model.network.parameters())).device) for name, value in values.items()
        }
        return Progress(int(document["iteration"]), document["best"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot resume from {path}", why=reason[:200], fix="choose another --out") from None
