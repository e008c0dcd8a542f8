"""PSNR of a network in training, by the protocol of `odm_deploy eval`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor
from torch.func import functional_call

from odm_deploy.imaging.pairs import ImagePair
from odm_deploy.proof.metrics import psnr_y
from odm_deploy.proof.upscalers import upscale_pixels, upscaler_of
from training.acceleration import exact_evaluation
from training.model import TrainableModel


def validate(model: TrainableModel, state: Mapping[str, Tensor], pairs: Iterable[ImagePair], device: str) -> float:
    """Mean PSNR of `model` with the parameters of `state`, in dB; the model in training is left as it is."""
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
