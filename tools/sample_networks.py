"""Networks of their published size with seeded random weights, and what to calibrate and build them with.

Weights are scaled so that features keep their spread from layer to layer and the output fills an image's range: where a
layer lands and how runtimes round does not depend on training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from toolbox import SAMPLES
from torch import nn

from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.policy import quantizable_layers

SCALE = 4
CROP_PX = 48
SHAPES = InputShapes((1, 3, 16, 16), (1, 3, 270, 480), (1, 3, 540, 960))
"""What their engines are built for."""


def load_crops(count: int) -> list[np.ndarray]:
    """The middle of sample images, uint8 [CROP_PX, CROP_PX, 3]."""
    crops = []
    for path in sorted((SAMPLES / "LR_bicubic" / f"X{SCALE}").glob("*.png"))[:count]:
        image = read_rgb(path)
        top, left = ((size - CROP_PX) // 2 for size in image.shape[:2])
        crops.append(np.ascontiguousarray(image[top : top + CROP_PX, left : left + CROP_PX]))
    return crops


def random_network(
    name: str, crops: list[np.ndarray], config: Mapping[str, Any] = {"scale": SCALE}
) -> SuperResolutionNetwork:
    """A network whose outputs look like an image's values, mean 128, standard deviation 50; of the published size."""
    torch.manual_seed(0)
    return spread_out(build_network(name, config), crops)


@torch.no_grad()
def spread_out(network: SuperResolutionNetwork, crops: list[np.ndarray]) -> SuperResolutionNetwork:
    """The network with random weights, scaled so that its outputs are as `random_network` says."""
    network.eval()
    for parameter in network.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    image = torch.from_numpy(to_batch(crops[0]))
    last = network.get_submodule(quantizable_layers(network)[-1])
    assert isinstance(last, nn.Conv2d)
    last.weight.mul_(50.0 / float(network(image).std()))
    if last.bias is not None:
        before = float(network(image).mean())
        last.bias.add_(1.0)
        slope = float(network(image).mean()) - before
        last.bias.add_((128.0 - before) / slope - 1.0)
    return network
