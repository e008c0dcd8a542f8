"""Images that calibration did not see, and what the float network makes of them: what quantization is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.proof.metrics import psnr_y

Network = Callable[[Tensor], Tensor]
"""float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], unclamped."""

PART_PX = 128
"""Height and width of the middle of an image that is compared: a dozen comparisons have to take seconds."""


@dataclass(frozen=True)
class Sample:
    """An image to judge by."""

    low: Tensor
    """Network input, float32 [1, 3, H, W] in 0..255."""
    truth: Rgb | None = None
    """uint8 [scale*H, scale*W, 3], the image it was made of by downscaling, where it was."""


@dataclass(frozen=True)
class OutputCost:
    """How far a quantized model's output is from the float network's."""

    images: int
    """Images compared."""
    psnr_db: float
    """PSNR between the two outputs over all of them, RGB in 0..255, clamped but not rounded; infinite when equal."""
    largest: float
    """Largest difference of a value, in 8-bit steps."""
    float_psnr_y_db: float | None = None
    """Float output against the truth, mean over images; None without truth."""
    quantized_psnr_y_db: float | None = None
    """Quantized output against the truth, mean over images; None without truth."""

    @property
    def drop_db(self) -> float | None:
        """What quantization loses against the truth; None without truth."""
        if self.float_psnr_y_db is None or self.quantized_psnr_y_db is None:
            return None
        return self.float_psnr_y_db - self.quantized_psnr_y_db


class HeldBack:
    """Held-back images with the float network's outputs, which are computed once.

    Args:
        network: the float network.
        samples: what to compare on; the middle `part_px` of each is kept.
        part_px: height and width of that middle, in pixels of the input.

    Raises:
        InputError: no sample, or an output that is not finite.
    """

    def __init__(self, network: Network, samples: Iterable[Sample], part_px: int = PART_PX) -> None:
        self.samples = [_middle(sample, part_px) for sample in samples]
        if not self.samples:
            raise InputError("nothing to judge by", why="no image was held back", fix="give --images more images")
        self._outputs = [_run(network, sample.low) for sample in self.samples]

    @property
    def lows(self) -> list[Tensor]:
        """The network inputs, float32 [1, 3, H, W] each."""
        return [sample.low for sample in self.samples]

    def measure(self, model: Network) -> OutputCost:
        """How far `model` is from the float network.

        Raises:
            InputError: an output that is not finite.
        """
        squared, values, largest = 0.0, 0, 0.0
        qualities: list[tuple[float, float]] = []
        for sample, expected in zip(self.samples, self._outputs, strict=True):
            found = _run(model, sample.low)
            difference = (found - expected).double()
            squared += float(difference.square().sum())
            values += difference.numel()
            largest = max(largest, float(difference.abs().max()))
            if sample.truth is not None:
                qualities.append((_quality(expected, sample), _quality(found, sample)))
        psnr_db = 10.0 * math.log10(255.0**2 * values / squared) if squared else math.inf
        means = [sum(each) / len(each) for each in zip(*qualities, strict=True)] or [None, None]
        return OutputCost(len(self.samples), psnr_db, largest, *means)


@torch.no_grad()
def _run(network: Network, low: Tensor) -> Tensor:
    output = network(low).float()
    if not bool(torch.isfinite(output).all()):
        raise InputError("the output holds NaN or infinity", fix="check the weights and the input range")
    return output.clamp(0.0, 255.0)


def _quality(output: Tensor, sample: Sample) -> float:
    assert sample.truth is not None
    return psnr_y(to_pixels(output.numpy()), sample.truth, shave=output.shape[-1] // sample.low.shape[-1])


def _middle(sample: Sample, part_px: int) -> Sample:
    """The middle of an image and of its truth."""
    top, left = (max(size - part_px, 0) // 2 for size in sample.low.shape[2:])
    low = sample.low[..., top : top + part_px, left : left + part_px].clone()
    if sample.truth is None:
        return Sample(low)
    scale = sample.truth.shape[0] // sample.low.shape[2]
    height, width = low.shape[2:]
    rows, columns = slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width))
    return Sample(low, sample.truth[rows, columns].copy())
