"""What each layer's grid makes of its input, and how far its weights moved from the float ones.

These are the quantities of the ODM papers' figures, measured on the user's own model and images: the distribution of
activations against the grid they are rounded to, and the mismatch ||x - Q(x)|| between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.grid import Grid
from odm_deploy.quantization.fake_quant import fake_quantize
from odm_deploy.quantization.model import QuantizedModel, tapped
from odm_deploy.quantization.observers import Histogram


@dataclass
class LayerStatistics:
    """A layer's input on all images so far."""

    name: str
    grid: Grid
    weight_bits: int
    values: int = 0
    clipped: int = 0
    """Values more than half a step beyond the first or the last level."""
    squared: float = 0.0
    squared_error: float = 0.0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, x: Tensor) -> None:
        """Take in what arrives at the layer's quantizer, float of any shape."""
        half = self.grid.scale / 2
        self.histogram.add(x)
        self.values += x.numel()
        self.clipped += int(((x < self.grid.lower - half) | (x > self.grid.upper + half)).sum())
        self.squared += float(x.double().square().sum())
        self.squared_error += float((x - fake_quantize(x, self.grid)).double().square().sum())

    @property
    def mismatch(self) -> float:
        """||x - Q(x)|| / ||x||; 0 for an input that is zero throughout and stays so."""
        if self.squared == 0:
            return 0.0 if self.squared_error == 0 else math.inf
        return math.sqrt(self.squared_error / self.squared)

    @property
    def clipped_share(self) -> float:
        """Share of clipped values, 0..1."""
        return self.clipped / self.values if self.values else 0.0


@torch.no_grad()
def measure_layers(model: QuantizedModel, images: Iterable[NDArray[np.float32]]) -> list[LayerStatistics]:
    """Statistics of the input of every quantized layer, in network order.

    Every layer sees what the quantized layers before it make, as in deployment.

    Args:
        model: the reference.
        images: float32 [1, 3, H, W] in 0..255.

    Source: C. Hong, K. M. Lee, "Overcoming Distribution Mismatch in Quantizing Image Super-Resolution Networks", 2024.
    """
    found = {name: LayerStatistics(name, layer.grid, layer.weight_bits) for name, layer in model.layers.items()}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def tap(x: Tensor) -> Tensor:
            # Tensors between layers have quantizers, too, which are no layer's.
            if name in found:
                found[name].add(x)
            return x

        return tap

    with tapped(model, watch):
        for image in images:
            model(torch.from_numpy(image))
    return list(found.values())


def weight_errors(model: QuantizedModel, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """||W - W^|| / ||W|| of every quantized layer whose float weights are known; others are absent.

    After quantization-aware training that holds what training moved, too, not rounding alone.

    Args:
        model: the quantized model.
        weights: a float network's state dict, keyed like the model's own network.
    """
    errors: dict[str, float] = {}
    for name, layer in model.layers.items():
        real = weights.get(f"{name}.weight")
        if real is not None and real.shape == layer.codes.shape and bool(real.any()):
            errors[name] = float((real.double() - layer.weight.double()).norm() / real.double().norm())
    return errors
