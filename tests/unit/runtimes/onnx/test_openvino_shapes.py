"""Sizes come and go, each compiled once; and what OpenVINO computes wrongly at dynamic size is right."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.networks.registry import build_network
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.onnx.openvino_faults import KEPT
from tests.factories import lowered, quantized, random_images, tiny_model


def test_every_size_is_computed_and_few_are_kept() -> None:
    model = tiny_model(8)
    sizes = [(12, 16), (7, 9), (20, 8), (9, 9), (16, 12), (12, 16), (5, 31)]
    assert len(set(sizes)) > KEPT
    with OpenVinoCpu.open_bytes(lowered(model).SerializeToString()) as runtime, runtime.another() as second:
        for height, width in sizes:
            images = random_images(height, width)
            expected = model(torch.from_numpy(images)).numpy()
            for each in (runtime, second):
                found = each.upscale(images)
                assert found.shape == expected.shape
                assert np.quantile(np.abs(found - expected), 0.9) < 0.01
        assert runtime._sizes is second._sizes
        assert len(runtime._sizes._compiled) == len(runtime._requests) == KEPT


def test_a_network_whose_first_convolution_is_quantized_too() -> None:
    """OpenVINO 2026.4, compiling this graph for dynamic sizes, is off by a seventh of the spread on average."""
    torch.manual_seed(1)
    network = build_network("srresnet", {"scale": 2, "blocks": 1}).eval()
    model = quantized(network, lambda *_: (4, "asymmetric", "per_channel"))
    images = random_images(40, 56, seed=7)
    expected = model(torch.from_numpy(images)).numpy()
    with OpenVinoCpu.open_bytes(lowered(model).SerializeToString()) as runtime:
        found = runtime.upscale(images)
    assert np.abs(found - expected).mean() < 0.05 * expected.std()


class ChannelAttention(nn.Module):
    """Convolutions, and a factor for each channel that is computed from the whole map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.body, self.tail = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        found: Tensor = self.body(F.relu(x))
        factors = torch.sigmoid(self.up(F.relu(self.down(found.mean((2, 3), keepdim=True)))))
        return F.pixel_shuffle(self.tail(x + found * factors), 2)


def test_channel_attention_with_shifts_and_gains() -> None:
    """Compiled for dynamic sizes, the quantizer of the one pixel's channels gives code 0 for all of them."""
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(4)]
    model = quantize(ChannelAttention(), QuantizationPolicy.parse("deploy", "8"), images)
    graph = lowered(model)
    found = compare_layers(model, graph, OpenVinoCpu.open_bytes, [random_images(24, 32, seed=5)])
    assert all(layer.is_clean for layer in found), [layer for layer in found if not layer.is_clean]
    expected = model(images[0]).numpy()
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(images[0].numpy()) - expected).max() < 0.05
