"""Images that calibration did not see, and what the float network makes of them: what quantization is judged by."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.networks.running import run_network
from odm_deploy.progress import Track, untracked
from odm_deploy.proof.metrics import luma_energy, psnr_y
from odm_deploy.quantization.exact.integer_products import integer_products
from odm_deploy.quantization.model import QuantizedModel

Network = Callable[[Tensor], Tensor]
"""float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], unclamped."""

STANDARD_ERRORS = 2.0
"""What a loss on few images is raised by, so that other images are likely to lose less."""
PART_PX = 128
"""Height and width of the middle of an image that is compared: a dozen comparisons have to take seconds."""

BEST_DB = 10.0 * math.log10(12.0 * 255.0**2)
"""PSNR that rounding to 8 bits alone leaves. Outputs nearer to the truth are as good as equal: that of black frames."""


@dataclass(frozen=True)
class Sample:
    """An image to judge by."""

    low: Tensor
    """Network input, float32 [1, 3, H, W] in 0..255."""
    truth: Rgb | None = None
    """uint8 [scale*H, scale*W, 3], the image it was made of by downscaling, where it was."""
    name: str = ""
    """What it is told by, such as its file's name."""


@dataclass(frozen=True)
class WorstImage:
    """The image whose quantized output is furthest from float's."""

    name: str
    """That of its `Sample`."""
    psnr_db: float
    """As `OutputCost.psnr_db`, of it alone."""
    seen: bool = False
    """Whether calibration saw it."""


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
    """Float output against the truth, mean over images of which it misses something; None without truth."""
    quantized_psnr_y_db: float | None = None
    """Quantized output against the truth, mean over the same images; None without truth."""
    uncancelled_drop_db: float | None = None
    """What would be lost against the truth if quantization's error had nothing to do with the float network's own,

        10 log10(1 + E[quantized - float]^2 / E[float - truth]^2)        of luma

    as mean over images, and `STANDARD_ERRORS` of that mean more. Small errors happen to cancel on one image and add up
    on the next, networks trained with an adversary score better when they blur, and images differ. So what was lost on
    a few of them says less of others than this."""
    worst: WorstImage | None = None
    """Of several images; None where outputs are equal."""

    @property
    def drop_db(self) -> float | None:
        """What quantization loses against the truth; None without truth."""
        if self.float_psnr_y_db is None or self.quantized_psnr_y_db is None:
            return None
        return self.float_psnr_y_db - self.quantized_psnr_y_db

    @property
    def expected_drop_db(self) -> float | None:
        """What other images have to be expected to lose: the larger of both losses; None without truth."""
        drop = self.drop_db
        return drop if drop is None or self.uncancelled_drop_db is None else max(drop, self.uncancelled_drop_db)

    def beside(self, seen: OutputCost) -> OutputCost:
        """This of a single image, with the worst of those that calibration saw where that one is worse still."""
        worst = seen.worst
        if worst is None or worst.psnr_db >= self.psnr_db:
            return self
        return dataclasses.replace(self, worst=dataclasses.replace(worst, seen=True))


class HeldBack:
    """Held-back images with the float network's outputs, which are computed once.

    Args:
        network: the float network.
        samples: what to compare on; the middle `part_px` of each is kept.
        part_px: height and width of that middle, in pixels of the input.
        track: shows progress while the float network runs.

    Raises:
        InputError: no sample, or an output that is not finite.
    """

    def __init__(
        self, network: Network, samples: Iterable[Sample], part_px: int = PART_PX, track: Track = untracked
    ) -> None:
        self.samples = [_middle(sample, part_px) for sample in samples]
        if not self.samples:
            raise InputError("nothing to judge by", why="no image was held back", fix="give --images more images")
        judged = track(self.samples, len(self.samples), "float pictures to compare with")
        self._outputs = [picture(network, sample.low) for sample in judged]

    @property
    def lows(self) -> list[Tensor]:
        """The network inputs, float32 [1, 3, H, W] each."""
        return [sample.low for sample in self.samples]

    @property
    def has_truth(self) -> bool:
        """Whether a loss against the truth can be measured."""
        return all(sample.truth is not None for sample in self.samples)

    def measure(self, model: Network) -> OutputCost:
        """How far `model` is from the float network.

        Raises:
            InputError: an output that is not finite.
        """
        squared, values, largest = 0.0, 0, 0.0
        qualities: list[tuple[float, float, float]] = []
        alone: list[WorstImage] = []
        for sample, expected in zip(self.samples, self._outputs, strict=True):
            found = picture(model, sample.low)
            difference = (found - expected).double()
            squared += (own := float(difference.square().sum()))
            values += difference.numel()
            alone.append(WorstImage(sample.name, _psnr(own, difference.numel())))
            largest = max(largest, float(difference.abs().max()))
            if sample.truth is not None:
                quality = _quality(expected, sample)
                qualities.append((quality, _quality(found, sample), _uncancelled(quality, difference, sample)))
        psnr_db = _psnr(squared, values)
        worst = min(alone, key=lambda image: image.psnr_db) if squared and len(alone) > 1 else None
        if not qualities:
            return OutputCost(len(self.samples), psnr_db, largest, worst=worst)
        # Of an image that misses nothing any error is a large share, infinite for black frames: it tells nothing.
        qualities = [each for each in qualities if each[0] < BEST_DB] or qualities
        plain, quantized, uncancelled = (sum(each) / len(each) for each in zip(*qualities, strict=True))
        if len(qualities) > 1:
            uncancelled += STANDARD_ERRORS * statistics.stdev(each[-1] for each in qualities) / len(qualities) ** 0.5
        return OutputCost(len(self.samples), psnr_db, largest, plain, quantized, uncancelled, worst)


def _psnr(squared: float, values: int) -> float:
    return 10.0 * math.log10(255.0**2 * values / squared) if squared else math.inf


@torch.no_grad()
def picture(network: Network, low: Tensor) -> Tensor:
    """What a network, float or quantized, makes of an image: float32 in 0..255, not rounded.

    Raises:
        InputError: the output is not finite.
    """
    with integer_products(network) if isinstance(network, QuantizedModel) else nullcontext():
        output = run_network(network, low).float()
    if not bool(torch.isfinite(output).all()):
        raise InputError("the output holds NaN or infinity", fix="check the weights and the input range")
    return output.clamp(0.0, 255.0)


def _quality(output: Tensor, sample: Sample) -> float:
    assert sample.truth is not None
    return min(psnr_y(to_pixels(output.numpy()), sample.truth, _border(output, sample)), BEST_DB)


def _uncancelled(quality_db: float, difference: Tensor, sample: Sample) -> float:
    """The loss in dB of an output of this quality that an unrelated difference makes."""
    border = _border(difference, sample)
    inner = difference[0, :, border:-border, border:-border] if border else difference[0]
    added = luma_energy(inner.permute(1, 2, 0).numpy())
    return 10.0 * math.log10(1.0 + added * 10.0 ** (quality_db / 10.0) / 255.0**2) if added else 0.0


def _border(output: Tensor, sample: Sample) -> int:
    """What benchmarks leave out on each side, in pixels: the scale."""
    return output.shape[-1] // sample.low.shape[-1]


def _middle(sample: Sample, part_px: int) -> Sample:
    """The middle of an image and of its truth."""
    top, left = (max(size - part_px, 0) // 2 for size in sample.low.shape[2:])
    low = sample.low[..., top : top + part_px, left : left + part_px].clone()
    if sample.truth is None:
        return Sample(low, name=sample.name)
    scale = sample.truth.shape[0] // sample.low.shape[2]
    height, width = low.shape[2:]
    rows, columns = slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width))
    return Sample(low, sample.truth[rows, columns].copy(), sample.name)
