"""What a run tells of itself: how good it is, how its two losses get along, where its ranges are, where it broke."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import ImagePair, Rgb
from odm_deploy.proof.evaluation import Upscale, upscale_pixels, upscaler_of
from odm_deploy.proof.metrics import psnr_rgb, psnr_y
from training.acceleration import exact_evaluation
from training.losses.cooperative import similarity
from training.methods.base import Gradients
from training.model import TrainableModel
from training.quantizers.weights import SymmetricWeight

PsnrOf = Literal["luma", "rgb"]
"""How validation images are judged: as test sets are (luma, a border of `scale` pixels left out), or as DIV2K's own
protocol has it (all three colours, `scale` + 6 pixels left out)."""


def validate(
    model: TrainableModel,
    state: Mapping[str, Tensor],
    pairs: Iterable[ImagePair],
    device: str,
    psnr_of: PsnrOf = "luma",
) -> float:
    """Mean PSNR of `model` with the parameters of `state`, in dB."""
    scale = model.network.scale

    def judged(sr: Rgb, hr: Rgb) -> float:
        return psnr_y(sr, hr, scale) if psnr_of == "luma" else psnr_rgb(sr, hr, scale + 6)

    with _evaluating(model, state, device) as upscale:
        values = [judged(upscale_pixels(upscale, pair.low), pair.high) for pair in pairs]
    return math.fsum(values) / len(values)


@contextmanager
def _evaluating(model: TrainableModel, state: Mapping[str, Tensor], device: str) -> Generator[Upscale]:
    """Within it, what upscales images with the parameters of `state`."""
    network = model.network

    def upscaled(low: Tensor) -> Tensor:
        return cast("Tensor", functional_call(network, dict(state), (low,)))

    network.eval()
    try:
        with exact_evaluation():
            yield upscaler_of(upscaled, device)
    finally:
        network.train()


def quantization_errors(
    model: TrainableModel, state: Mapping[str, Tensor], pair: ImagePair, device: str
) -> dict[str, float]:
    """Root mean squared error of each layer's input on an image, in feature units: what ODM v2 calls the mismatch."""
    errors: dict[str, float] = {}

    def watch(name: str, quantizer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], levels: Tensor) -> None:
            errors[name] = (inputs[0].float() - levels).square().mean().sqrt().item()

        return quantizer.register_forward_hook(hook)

    handles = [watch(name, layer.activation) for name, layer in model.layers.items()]
    try:
        with _evaluating(model, state, device) as upscale:
            upscale_pixels(upscale, pair.low)
    finally:
        for handle in handles:
            handle.remove()
    return errors


@torch.no_grad()
def weight_bounds(model: TrainableModel) -> dict[str, float]:
    """How far each symmetric weight range reaches, relative to the largest weight now; mean over channels."""
    return {
        name: (quantizer.bound(layer.weight).mean() / layer.weight.abs().amax()).item()
        for name, layer in model.layers.items()
        if isinstance(quantizer := layer.weight_quantizer, SymmetricWeight)
    }


def conflicts(gradients: Gradients) -> dict[str, float]:
    """How often the auxiliary gradient works against the reconstruction (ODM v2, Fig. 2); empty without one.

    Returns:
        `conflict_tensors`: share of parameter tensors whose two gradients have a negative cosine, in [0, 1];
        `conflict_scalars`: share of scalar parameters whose two derivatives have opposite signs, in [0, 1];
        `cosine`: mean cosine of the two gradients over parameter tensors, in [-1, 1].
    """
    shared = [name for name in gradients.auxiliary if name in gradients.reconstruction]
    if not shared:
        return {}
    pairs = [(gradients.reconstruction[name].flatten(), gradients.auxiliary[name].flatten()) for name in shared]
    products = [ours * theirs for ours, theirs in pairs]
    opposed = torch.stack([product.sum() < 0 for product in products])
    # (cos + 1) / 2 is what the cooperative update weighs by.
    cosines = [2.0 * similarity(*pair) - 1.0 for pair in pairs]
    return {
        "conflict_tensors": opposed.float().mean().item(),
        "conflict_scalars": (torch.cat(products) < 0).float().mean().item(),
        "cosine": torch.stack(cosines).mean().item(),
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
