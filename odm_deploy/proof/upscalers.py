"""What can be measured: a model.pt, float weights, or a bundle on a runtime, each as a function on arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle import Bundle
from odm_deploy.errors import UsageError
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime

if TYPE_CHECKING:
    from torch import Tensor

Upscale = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
"""float32 [N, 3, H, W], RGB in 0..255 -> floats [N, 3, scale*H, scale*W], unclamped."""


def upscale_pixels(upscale: Upscale, low: Rgb) -> Rgb:
    """uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3], rounded half to even and clamped.

    Raises:
        InputError: the output is not finite.
    """
    return to_pixels(upscale(to_batch(low)))


def upscaler_of(network: Callable[[Tensor], Tensor], device: str = "cpu") -> Upscale:
    """A torch network as it is, without gradients; images go to `device` and come back."""
    import torch

    @torch.no_grad()
    def upscale(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return network(torch.from_numpy(images).to(device)).cpu().numpy()

    return upscale


def open_upscaler(
    model: Path,
    scale: int | None = None,
    *,
    network: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
) -> tuple[Upscale, int]:
    """The function that upscales, and its factor.

    Args:
        model: a model.pt (run by the torch reference), a bundle or model.onnx (run by a runtime), or with `network`
            a file of float weights.
        scale: output pixels per input pixel, where the model does not say; where it does, it must be the same.
        network: the architecture that `model` holds float weights of.
        runtime: what runs a bundle; None takes the fastest that works here.
        threads: CPU threads of that runtime.

    Raises:
        InputError: the model is missing or damaged.
        MissingError: no runtime for it is installed here.
        UsageError: the scale is not known, or another one.
    """
    if network is not None:
        if scale is None:
            raise UsageError("--network without --scale", fix="say what the weights were trained for")
        from odm_deploy.networks.registry import network_from_state_dict
        from odm_deploy.networks.state_dict import read_state_dict

        return upscaler_of(network_from_state_dict(network, read_state_dict(model), scale)), scale
    if model.suffix in (".pt", ".pth"):
        from odm_deploy.checkpoint import load_model
        from odm_deploy.proof.reference import TorchReference

        quantized = load_model(model)
        upscale, own = TorchReference(quantized).upscale, quantized.scale
    else:
        bundle = Bundle.open(model)
        upscale = open_runtime(bundle, runtime, RuntimeOptions(threads=threads)).upscale
        own = scale if bundle.manifest is None else bundle.manifest.scale
    if own is None:
        raise UsageError(f"the scale of {model} is not known", why="it lies in no bundle", fix="add --scale")
    if scale not in (None, own):
        raise UsageError(f"--scale {scale}", why=f"{model} upscales by {own}")
    return upscale, own
