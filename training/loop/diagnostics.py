"""What a run tells about its inside: how its two losses get along, and where its ranges are."""

from __future__ import annotations

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from training.methods.base import Gradients
from training.model import TrainableModel


def conflicts(gradients: Gradients) -> dict[str, float]:
    """How often the auxiliary gradient works against the reconstruction (ODM v2, Fig. 2); empty without one.

    Returns:
        `conflict_tensors`: share of parameter tensors whose two gradients have a negative cosine, in [0, 1];
        `conflict_scalars`: share of scalar parameters whose two derivatives have opposite signs, in [0, 1].
    """
    shared = [name for name in gradients.auxiliary if name in gradients.reconstruction]
    if not shared:
        return {}
    products = [(gradients.reconstruction[name] * gradients.auxiliary[name]).flatten() for name in shared]
    opposed = torch.stack([product.sum() < 0 for product in products])
    return {
        "conflict_tensors": opposed.float().mean().item(),
        "conflict_scalars": (torch.cat(products) < 0).float().mean().item(),
    }


def ranges(model: TrainableModel) -> dict[str, list[float]]:
    """First and last level of each layer's activation grid, in feature units; no entry where it is not static."""
    result: dict[str, list[float]] = {}
    for name, layer in model.layers.items():
        try:
            grid = layer.activation.grid()
        except InputError:
            continue
        result[name] = [grid.lower, grid.upper]
    return result


def logged(name: str, gradients: Gradients) -> dict[str, float]:
    """The values a log line adds for a step with an auxiliary loss called `name`; empty without one."""
    loss: Tensor | None = gradients.auxiliary_loss
    return {} if loss is None else {name: loss.item(), **conflicts(gradients)}
