"""Pooling to a size of the image's own: as PyTorch has it, at every size, also in the graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.lowering.adaptive_pooling import SizesFromImages, largest, mean, pooled
from odm_deploy.lowering.lower import lower
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import OPENERS, random_images


class Pooling(nn.Module):
    """Attention as SAFMN has it: pooled to an eighth, a convolution there, enlarged again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        height, width = x.shape[-2:]
        pooled = F.adaptive_max_pool2d(x, (height // 8, width // 8))
        coarser = F.adaptive_avg_pool2d(x, output_size=(height // 4, width // 4))
        coarse = F.interpolate(self.coarse(pooled), size=(height, width), mode="nearest")
        x = torch.relu(coarse) * x + F.interpolate(coarser, size=(height, width), mode="bilinear")
        return F.pixel_shuffle(self.last(x * F.adaptive_avg_pool2d(x, 1)), 2)


class Pyramid(nn.Module):
    """Maps pooled to sizes that the code names, whatever the image's is, and rows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.averages, self.largest = nn.AdaptiveAvgPool2d(8), nn.AdaptiveMaxPool2d((3, None))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        size = x.shape[-2:]
        tokens = F.adaptive_avg_pool1d(x.flatten(2), 6).softmax(1).mean(-1)[..., None, None]
        smaller = F.interpolate(x, scale_factor=0.4, mode="area")
        maps = [F.interpolate(x, size=5, mode="area"), self.averages(x), self.largest(x), self.coarse(smaller)]
        maps.append(F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True))
        maps.append(F.interpolate(x, size=(9, 7), mode="bicubic", antialias=True))
        x = x * tokens + sum(F.interpolate(each, size=size, mode="nearest") for each in maps)
        return F.pixel_shuffle(self.last(x), 2)


@pytest.mark.parametrize("length", [8, 9, 15, 16, 31, 41])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_it_is_pytorchs(length, count) -> None:
    x = torch.randn(2, 3, length, 11, generator=torch.Generator().manual_seed(length))
    assert torch.equal(pooled(x, -2, count, largest), F.adaptive_max_pool2d(x, (count, 11)))
    torch.testing.assert_close(pooled(x, -2, count, mean), F.adaptive_avg_pool2d(x, (count, 11)))
    x = x.transpose(2, 3)
    assert torch.equal(pooled(x, -1, count, largest), F.adaptive_max_pool2d(x, (11, count)))
    torch.testing.assert_close(pooled(x, -1, count, mean), F.adaptive_avg_pool2d(x, (11, count)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "how",
    [
        {"scale_factor": 0.5},
        {"scale_factor": (0.4, 1.7)},
        {"scale_factor": 0.3, "recompute_scale_factor": True},
        {"size": (9, 30)},
        {"size": 8, "align_corners": True},
    ],
)
def test_antialiased_resizing_is_pytorchs(mode, how) -> None:
    x = torch.randn(2, 3, 21, 14, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(x, mode=mode, antialias=True, **how)
    with SizesFromImages():
        torch.testing.assert_close(F.interpolate(x, mode=mode, antialias=True, **how), expected)


class Placed(nn.Module):
    """Knows where each pixel is, as CoordConv does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(5, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[2:]
        rows = torch.linspace(-1, 1, height, device=x.device)
        columns = torch.linspace(start=0.0, end=1.0, steps=width, dtype=x.dtype)
        y, z = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack([y, z])[None].expand(x.shape[0], -1, -1, -1)
        return F.pixel_shuffle(self.last(self.deep(self.first(torch.cat([x, places], 1)))), 2)


@pytest.mark.parametrize("network", [Pooling, Pyramid, Placed])
def test_the_graph_pools_at_every_size(network) -> None:
    torch.manual_seed(4)
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(3)]
    model = quantize(network().eval(), QuantizationPolicy(*[LayerBits(8, 8)] * 4), images)
    graph = lower(model).SerializeToString()
    for runtime in ("onnxruntime", "openvino"):
        with OPENERS[runtime](graph) as opened:
            for size in ((24, 32), (41, 55), (17, 63), (64, 48), (96, 96)):
                x = random_images(*size, seed=9)
                with torch.no_grad():
                    expected = model(torch.from_numpy(x)).numpy()
                assert np.quantile(np.abs(opened.upscale(x) - expected), 0.95) < 0.5, (runtime, size)
