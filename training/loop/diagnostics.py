"""What a run tells of itself: how good it is, how its two losses get along, where its ranges are, where it broke."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import ImagePair
from odm_deploy.proof.evaluation import upscale_pixels, upscaler_of
from odm_deploy.proof.metrics import psnr_y
from training.acceleration import exact_evaluation
from training.methods.base import Gradients
from training.model import TrainableModel


def validate(model: TrainableModel, state: Mapping[str, Tensor], pairs: Iterable[ImagePair], device: str) -> float:
    """Mean PSNR of `model` with the parameters of `state`, in dB, as `odm-deploy eval` measures it."""
    network = model.network

    def upscaled(low: Tensor) -> Tensor:
        return cast("Tensor", functional_call(network, dict(state), (low,)))

    upscale = upscaler_of(upscaled, device)
    network.eval()
    try:
        with exact_evaluation():
            values = [psnr_y(upscale_pixels(upscale, pair.low), pair.high, network.scale) for pair in pairs]
    finally:
        network.train()
    return math.fsum(values) / len(values)


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


@torch.no_grad()
def first_broken_layer(model: TrainableModel, low: Tensor) -> str:
    """A clause naming the first layer whose output is NaN or infinite when `low` passes through again."""
    broken: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.network.named_modules() if name]
    try:
        model(low)
    finally:
        for handle in handles:
            handle.remove()
    return f"the first NaN or infinity leaves {broken[0]}" if broken else "every layer's output is finite"


def broken_gradients(gradients: Mapping[str, Tensor], iteration: int) -> InputError:
    """The error that names the first parameter whose gradient is NaN or infinite."""
    name = next((name for name, value in gradients.items() if not bool(torch.isfinite(value).all())), "all together")
    return InputError(
        f"training diverged at iteration {iteration}",
        why=f"the gradient of {name} is not finite",
        fix="lower the learning rates and use another --out",
    )
