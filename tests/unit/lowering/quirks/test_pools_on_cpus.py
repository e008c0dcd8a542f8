"""Averages, extremes and windows beyond the border, on OpenVINO and ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.bundle import Target
from odm_deploy.quantization.policy import QuantizationPolicy
from tests.every_layer import check_every_layer, crops, quantized_once
from tests.factories import OPENERS, lowered, random_images

RUNTIMES = ("onnxruntime", "openvino")


class Extremes(nn.Module):
    """Attention from the largest of each map, and from the smallest of each pixel's channels, alone and joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))
        self.channels, self.pixels = nn.Conv2d(12, 12, 1), nn.Conv2d(1, 1, 3, padding=1)
        self.joined = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        found: Tensor = self.body(F.relu(x))
        factors: Tensor = self.channels(F.relu(F.adaptive_max_pool2d(found, 1)))
        places: Tensor = self.pixels(found.amin(1, keepdim=True))
        places = places + self.joined(torch.cat([found.mean(1, keepdim=True), found.amax(1, keepdim=True)], 1))
        return F.pixel_shuffle(self.tail(x + found * torch.sigmoid(factors) * torch.sigmoid(places)), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("bits", ["8", "4"])
def test_the_largest_and_the_smallest_are_quantized_rightly(target: Target, bits: str) -> None:
    """OpenVINO makes one operator of such a reduction and the quantizer, with nearly all codes wrong."""
    model = quantized_once(Extremes, profile="deploy", bits=bits)
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


class Averages(nn.Module):
    """A signal is averaged with zeros around it: the pooling's, or padded before, also of joined and moved parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(13)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        around = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1) * 2.0 - F.avg_pool2d(x, 5, 1, 2, divisor_override=20)
        joined = F.avg_pool2d(torch.cat([x[:, 6:], x[:, :6]], 1), 3, 1, 1)
        joined = joined + F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 3, 1, 1)
        return F.pixel_shuffle(self.tail(self.body(around + joined) + x), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_averages_with_zeros_around(target: Target) -> None:
    """OpenVINO padded codes with 0 instead of the code of zero, and the exporter leaves a divisor out."""
    model = quantized_once(Averages, profile="integer")
    graph = lowered(model, target=target)
    for runtime in RUNTIMES:
        check_every_layer(model, graph, random_images(20, 28, seed=5), OPENERS[runtime])


class NormalizedAverages(Averages):
    """A signal's averages by windows are normalized."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        averages = F.pad(F.avg_pool2d(x, 7, 1), (3, 3, 3, 3), "replicate")
        averages = averages / (averages.abs().sum(1, keepdim=True) + 1.0)
        return F.pixel_shuffle(self.tail(self.body(averages) + x), 2)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_normalized_averages_of_signals(bits: str) -> None:
    """OpenVINO was up to two steps off in half of the codes."""
    model = quantize(NormalizedAverages(), QuantizationPolicy.parse("integer", bits), crops(20, 28))
    check_every_layer(model, lowered(model, target="cpu"), random_images(20, 28, seed=5))


class PoolsBeyond(nn.Module):
    """A map is made smaller by windows that may reach beyond it, and enlarged again."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))
        self.head.bias.data -= 2.0  # pyright: ignore[reportOptionalMemberAccess]
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        smaller: Tensor = self.body(self.pool(x))
        return F.pixel_shuffle(self.tail(x + F.interpolate(smaller, size=x.shape[2:])), 2)


def _rows(pool: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: pool(x.flatten(2))[..., None].expand(-1, -1, -1, 2)


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(lambda x: F.avg_pool2d(x, (3, 4), (2, 3), (1, 2), ceil_mode=True), id="averages"),
        pytest.param(lambda x: F.avg_pool2d(x, 3, 3, 1, ceil_mode=True), id="averages_behind"),
        pytest.param(_rows(lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True)), id="averages_of_rows"),
        pytest.param(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 3, ceil_mode=True), id="padded_averages"),
        pytest.param(lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True), id="largest"),
        pytest.param(_rows(lambda x: F.max_pool1d(x, 2, 3, ceil_mode=True)), id="largest_of_rows"),
        pytest.param(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1), id="padded_largest"),
    ],
)
def test_windows_that_reach_beyond_the_border(pool: Callable[[Tensor], Tensor]) -> None:
    """OpenVINO divided by fewer, and had windows that PyTorch has not; ONNX Runtime took zeros padded for nothing."""
    images = crops(22, 29)
    model = quantize(PoolsBeyond(pool).eval(), QuantizationPolicy.parse("integer", "8"), images)
    graph = lowered(model, target="cpu")
    for runtime, size in itertools.product(RUNTIMES, ((22, 29), (20, 28), (21, 27))):
        check_every_layer(model, graph, random_images(*size, seed=5), OPENERS[runtime])
