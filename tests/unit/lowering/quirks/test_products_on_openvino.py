"""Codes that are split, transposed or mixed by constants before a product."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from tests.every_layer import crops
from tests.factories import UNFITTED, random_images


class MixedByConstants(nn.Module):
    """A float convolution's codes are moved to a product with float constants, and added behind another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        mixed = torch.tensordot(x, torch.eye(12).flip(0), ([1], [0])).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.tail(self.body(mixed) + x), 2)


@pytest.mark.parametrize("head", [None, LayerBits(8, 8)])
def test_the_first_codes_of_networks_with_products(head: LayerBits | None) -> None:
    """Seen in the whole picture only: what reads codes out keeps the convolution from the quantizer, too."""
    images = crops(32, 36)
    policy = dataclasses.replace(QuantizationPolicy.parse("integer", "8"), head=head)
    model = quantize(MixedByConstants(), policy, images[:2], settings=UNFITTED)
    graph = lower(model, LoweringOptions(target="cpu"))
    image = random_images(33, 50, seed=6)
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(image) - model(torch.from_numpy(image)).numpy()).mean() < 0.05


class UnfoldedWindows(nn.Module):
    """Attention in windows that `unfold` cuts out of queries, keys and values, which one convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.head, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.three, self.end = nn.Conv2d(12, 36, 1), nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        parts = (F.unfold(part, 4, stride=4).unflatten(1, (12, 16)) for part in self.three(x).chunk(3, 1))
        queries, keys, values = (part.permute(0, 3, 2, 1) for part in parts)
        mixed = (queries @ keys.transpose(-2, -1)).softmax(-1) @ values
        folded = F.fold(mixed.permute(0, 3, 2, 1).flatten(1, 2), (x.shape[2], x.shape[3]), 4, stride=4)
        return F.pixel_shuffle(self.tail(x + self.end(folded)), 2)


@pytest.mark.parametrize("bits", ["8", "3"])
def test_codes_that_are_split_and_taken_apart_before_products(bits: str) -> None:
    images = crops(32, 36)
    model = quantize(UnfoldedWindows(), QuantizationPolicy.parse("engine", bits), images[:2], settings=UNFITTED)
    graph = lower(model, LoweringOptions(target="cpu"))
    image = random_images(32, 48, seed=6)
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(image) - model(torch.from_numpy(image)).numpy()).mean() < 0.05


class TokensFirst(nn.Module):
    """A float convolution's result goes to a product by a transposition, and the product's is rolled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.mix, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.head(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        rolled = torch.roll(mixed, (1, -2), (2, 3)).permute(0, 2, 3, 1)
        return F.pixel_shuffle(self.tail(self.norm(rolled).permute(0, 3, 1, 2)), 2)


def test_codes_that_are_transposed_before_a_product() -> None:
    """Seen in the whole picture only, as above."""
    model = quantize(TokensFirst(), QuantizationPolicy.parse("engine", "8"), crops(32, 36)[:2], settings=UNFITTED)
    image = random_images(33, 50, seed=6)
    with OpenVinoCpu.open_bytes(lower(model, LoweringOptions(target="cpu")).SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(image) - model(torch.from_numpy(image)).numpy()).mean() < 0.05
