"""Pooling to a size of the image's own: as PyTorch has it, at every size, also in the graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.lowering.lower import lower
from odm_deploy.lowering.pooling import largest, mean, pooled
from odm_deploy.lowering.sizes_from_images import SizesFromImages
from odm_deploy.proof.teacher_forced_layers import compare_layers
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


POOLINGS = {
    "average": (F.avg_pool2d, torch._C._nn.avg_pool2d),
    "average_of_rows": (F.avg_pool1d, torch.avg_pool1d),
    "largest": (F.max_pool2d, torch.max_pool2d, lambda *args, **kwargs: nn.MaxPool2d(*args[1:], **kwargs)(args[0])),
    "largest_of_rows": (F.max_pool1d, torch.max_pool1d),
}


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("how", [(2, None, 0), (3, 2, 1), (2, 2, 1), (3, 3, 1), (5, 3, 2), (2, 3, 0), ([4], [4], [2])])
@pytest.mark.parametrize("ceil", [False, True])
def test_pooling_by_windows_is_pytorchs(kind, how, ceil) -> None:
    for length in range(9, 24):
        x = torch.randn(2, 3, *([length] if "rows" in kind else [length, 13]))
        for function in POOLINGS[kind]:
            kernel, stride, padding = how
            how_far = {} if stride is None else {"stride": stride}
            expected = function(x, kernel, padding=padding, ceil_mode=ceil, **how_far)
            with SizesFromImages():
                found = function(x, kernel, padding=padding, ceil_mode=ceil, **how_far)
            torch.testing.assert_close(found, expected)


FACTORS = [{"scale_factor": factor} for factor in (2.0, 0.5, 1.7, 0.6, 1.3, (2.5, 0.3))]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("how", [*FACTORS, {"size": (30, 9)}, {"scale_factor": 1.7, "recompute_scale_factor": True}])
def test_the_nearest_values_are_pytorchs(mode, how) -> None:
    for height, width in itertools.product(range(10, 60, 7), range(10, 130, 11)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(width))
        for order in (torch.contiguous_format, torch.channels_last):
            expected = F.interpolate(x.to(memory_format=order), mode=mode, **how)
            with SizesFromImages():
                assert torch.equal(F.interpolate(x.to(memory_format=order), mode=mode, **how), expected)


class Nearest(nn.Module):
    """Takes the nearest values of maps, and their own size again."""

    def __init__(self, mode: str, how: Mapping[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.mode, self.how = nn.Conv2d(8, 12, 3, padding=1), mode, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        height, width = x.shape[-2:]
        how = self.how or {"size": (height // 2 + 3, width // 3 + 2)}
        other = self.deep(F.interpolate(x, mode=self.mode, **how))
        return F.pixel_shuffle(self.last(x + F.interpolate(other, size=(height, width), mode="bilinear")), 2)


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("nearest-exact", {"scale_factor": 1.7}),
        ("nearest-exact", {"scale_factor": 0.3}),
        ("nearest-exact", {"scale_factor": 2}),
        ("nearest-exact", {}),
        ("nearest", {"scale_factor": (0.6, 1.3)}),
    ],
)
def test_the_graph_takes_the_nearest_values(mode, how) -> None:
    images = [torch.from_numpy(random_images(34, 51, seed=seed)) for seed in range(3)]
    model = quantize(Nearest(mode, how).eval(), QuantizationPolicy.parse("deploy", "8"), images)
    graph = lower(model)
    for runtime, size in itertools.product(("onnxruntime", "openvino"), ((34, 51), (45, 90))):
        layers = compare_layers(model, graph, OPENERS[runtime], [random_images(*size, seed=9)])
        assert [(runtime, layer) for layer in layers if not layer.is_clean] == []


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


class Around(nn.Module):
    """Pads around the edges, and rolls by shifts that the image's size gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(n, 12, 3, padding=1, padding_mode="circular") for n in (3, 12))
        self.deep = nn.Conv2d(12, 12, 3)

    def forward(self, x):
        height, width = x.shape[2:]
        x = torch.relu(torch.roll(self.first(x), (height // 2, -(width // 4)), (2, -1)))
        x = self.deep(F.pad(x, (2, 1, 0, 3), mode="circular"))[:, :, :-1, :-1]
        return F.pixel_shuffle(self.last(x), 2)


def test_the_graph_goes_around_edges_at_every_size() -> None:
    torch.manual_seed(4)
    images = [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(2)]
    model = quantize(Around().eval(), QuantizationPolicy.parse("integer", "8"), images)
    graph = lower(model).SerializeToString()
    for runtime in ("onnxruntime", "openvino"):
        with OPENERS[runtime](graph) as opened:
            for size in ((24, 32), (33, 51)):
                x = random_images(*size, seed=9)
                assert np.abs(opened.upscale(x) - model(torch.from_numpy(x)).numpy()).mean() < 0.05, (runtime, size)


@pytest.mark.parametrize("edges", [(1, 2), (0, 3, 2, 0), (1, 1, 1, 1)])
def test_padding_around_edges_is_pytorchs(edges) -> None:
    x = torch.rand(2, 3, 5, 7)
    x = x if len(edges) > 2 else x[0]
    expected = F.pad(x, edges, mode="circular")
    with SizesFromImages():
        assert torch.equal(F.pad(x, edges, mode="circular"), expected)
