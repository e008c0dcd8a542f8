"""PSNR and SSIM of networks in training, by the protocol of `odm_deploy eval`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.proof.metrics import psnr_y, ssim_y
from training.acceleration import exact_evaluation
from training.data import ImagePair, Rgb, as_batch
from training.model import TrainableModel


@dataclass(frozen=True)
class Score:
    """Mean over images."""

    psnr_y_db: float
    """Peak signal-to-noise ratio of luma, in dB."""
    ssim_y: float
    """Structural similarity of luma."""


@torch.no_grad()
def upscale(network: Callable[[Tensor], Tensor], low: Rgb, device: str = "cpu") -> Rgb:
    """uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3], rounded and clamped."""
    return to_pixels(network(as_batch(low[None]).to(device)).cpu().numpy())


def score(network: Callable[[Tensor], Tensor], pairs: Iterable[ImagePair], scale: int, device: str = "cpu") -> Score:
    """Mean PSNR and SSIM over images, `scale` pixels of border shaved."""
    results = []
    for pair in pairs:
        output = upscale(network, pair.low, device)
        results.append((psnr_y(output, pair.high, scale), ssim_y(output, pair.high, scale)))
    psnr, ssim = np.array(results, dtype=np.float64).mean(axis=0)
    return Score(float(psnr), float(ssim))


def validate(model: TrainableModel, state: Mapping[str, Tensor], pairs: Iterable[ImagePair], device: str) -> float:
    """Mean PSNR of `model` with the parameters of `state`, in dB; the model in training is left as it is."""
    network = model.network

    def upscaled(low: Tensor) -> Tensor:
        return cast("Tensor", functional_call(network, dict(state), (low,)))

    network.eval()
    try:
        with exact_evaluation():
            values = [psnr_y(upscale(upscaled, pair.low, device), pair.high, network.scale) for pair in pairs]
    finally:
        network.train()
    return math.fsum(values) / len(values)
