"""How a run ends: what no static grid can hold is given up, and the parameters become model.pt or weights.pt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from odm_deploy.checkpoint import save_model
from odm_deploy.files import atomic_path, file_sha256
from odm_deploy.imaging.pairs import ImagePair
from odm_deploy.quantization.cross_layer import SCALED_CHANNELS
from odm_deploy.version import __version__
from training.config import to_tables
from training.loop.diagnostics import validate
from training.loop.state import Progress
from training.methods.base import Method
from training.model import TrainableModel
from training.recipe import Recipe
from training.recipe_files import expand_places


def write_result(
    recipe: Recipe,
    method: Method[Any],
    model: TrainableModel,
    validation: Sequence[ImagePair],
    progress: Progress,
    scaled_channels: dict[str, list[int]],
    *,
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Freeze `model` as it is into `folder`/model.pt; the float control becomes weights.pt.

    The method may simplify `model` first; `validation` images tell what that costs. `scaled_channels` are those of
    `preparation.equalize`. A method whose result has no integer form writes nothing and tells why.

    Raises:
        InputError: a layer that cannot be frozen, or a file that cannot be written.
    """
    _simplify(method, model, validation, recipe, tell)
    reason = method.why_not_exportable()
    if reason:
        tell(f"no model.pt: {reason}")
    elif not model.layers:
        with atomic_path(folder / "weights.pt") as temporary:
            torch.save(model.float_network().state_dict(), temporary)
        tell(f"wrote {folder / 'weights.pt'}")
    else:
        provenance = _provenance(recipe, method, progress)
        if scaled_channels:
            # So that the float network can be brought into this form and compared layer by layer.
            provenance[SCALED_CHANNELS] = scaled_channels
        save_model(model.freeze(provenance), folder / "model.pt")
        tell(f"wrote {folder / 'model.pt'}")


def _simplify(
    method: Method[Any],
    model: TrainableModel,
    validation: Sequence[ImagePair],
    recipe: Recipe,
    tell: Callable[[str], None],
) -> None:
    before = copy.deepcopy(model)
    given_up = method.simplify(model)
    if not given_up:
        return
    costs = ""
    if validation:
        device, psnr_of = recipe.run.device, recipe.data.validation_psnr
        first, then = (
            validate(each, each.network.state_dict(), validation, device, psnr_of) for each in (before, model)
        )
        costs = f": {then - first:+.3f} dB on the validation images ({first:.3f} -> {then:.3f})"
    tell(f"{given_up}{costs}")


def _provenance(recipe: Recipe, method: Method[Any], progress: Progress) -> dict[str, Any]:
    """Where a model.pt comes from, as plain values."""
    start = recipe.network.weights
    weights = expand_places(start)
    return {
        "made_by": f"odm-deploy training {__version__}",
        "method": method.name,
        "recipe": to_tables(recipe),
        "iterations": progress.iteration,
        "validation_psnr_db": progress.best.get("psnr_db"),
        "float_weights": {"name": weights.name, "sha256": file_sha256(weights)} if start else None,
    }
