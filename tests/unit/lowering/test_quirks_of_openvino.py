"""What OpenVINO computes wrongly in networks of attention, windows, groups and normalizations, each layer by itself.

And ONNX Runtime in pooling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import openvino
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.bundle import Target
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.onnx.openvino_faults import wants_fixed_sizes
from tests.factories import OPENERS, UNFITTED, random_images

Opener = Callable[[bytes], Runtime]


def crops(height: int, width: int) -> list[Tensor]:
    return [torch.from_numpy(random_images(height, width, seed=seed)) for seed in range(4)]


def check_every_layer(
    model: QuantizedModel, graph: ModelProto, image: NDArray[np.float32], opener: Opener = OpenVinoCpu.open_bytes
) -> None:
    layers = compare_layers(model, graph, opener, [image])
    assert layers
    assert all(layer.is_clean for layer in layers), [layer for layer in layers if not layer.is_clean]


class ChannelAttention(nn.Module):
    """Convolutions, and a factor for each channel that is computed from the whole map; a matrix mixes them."""

    def __init__(self, rectifier: Callable[[], nn.Module], mixing: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.body, self.tail = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))
        self.down, self.up, self.rectifier = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), rectifier()
        self.mix = nn.Linear(12, 12) if mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        found: Tensor = self.body(F.relu(x))
        factors = torch.sigmoid(self.up(self.rectifier(self.down(found.mean((2, 3), keepdim=True)))))
        mixed: Tensor = self.mix((x + found * factors).permute(0, 2, 3, 1))
        return F.pixel_shuffle(self.tail(mixed.permute(0, 3, 1, 2)), 2)


@pytest.mark.parametrize(
    ("target", "rectifier", "mixing"),
    [
        pytest.param("cpu", nn.ReLU, False, id="each_size"),
        pytest.param("cpu", nn.ReLU, True, id="relu"),
        pytest.param("tensorrt", nn.SiLU, True, id="silu"),
        pytest.param("cpu", lambda: nn.PReLU(4), True, id="prelu"),
        pytest.param("cpu", lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GELU()), True, id="batch_norm"),
        pytest.param("cpu", lambda: nn.Sequential(nn.Hardswish(), nn.BatchNorm2d(4)), True, id="hard_swish"),
        pytest.param("tensorrt", lambda: nn.Sequential(nn.ELU(), nn.BatchNorm2d(4)), True, id="elu"),
    ],
)
def test_channel_attention(target: Target, rectifier: Callable[[], nn.Module], mixing: bool) -> None:
    """Compiled for any batch, a convolution of one pixel is wrong where arithmetic per channel follows."""
    images = crops(24, 32)
    network = ChannelAttention(rectifier, mixing).eval()
    for weight in network.rectifier.parameters():
        weight.data = torch.tensor([0.1, -0.2, 0.3, 0.25])
    model = quantize(network, QuantizationPolicy.parse("deploy", "8"), images)
    graph = lower(model, LoweringOptions(target=target))
    assert wants_fixed_sizes(graph) is not mixing
    check_every_layer(model, graph, random_images(24, 32, seed=5))
    expected = model(images[0]).numpy()
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(images[0].numpy()) - expected).max() < 0.05


class Tokens(nn.Module):
    """Maps padded to whole windows, as rows of tokens and back, as in networks of windows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))
        self.norm, self.mix = nn.LayerNorm(12), nn.Linear(12, 12)
        self.norm.weight.data = torch.linspace(0.1, 3.0, 12)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.head(F.pad(x, (0, -width % 8, 0, -height % 8), "reflect"))
        rows, columns = x.shape[2:]
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        mixed: Tensor = self.body((tokens + self.mix(tokens)).transpose(1, 2).view(-1, 12, rows, columns))
        return F.pixel_shuffle(self.tail(x + mixed), 2)[:, :, : 2 * height, : 2 * width]


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("bits", ["8", "4"])
def test_channels_that_openvino_does_not_know(target: Target, bits: str) -> None:
    """Behind shapes that are computed with remainders, factors per channel were taken for one factor."""
    images = crops(20, 28)
    model = quantize(Tokens(), QuantizationPolicy.parse("deploy", bits), images)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


class WithoutBias(Tokens):
    """Convolutions without biases, or with zeros, whose results a layer, a sum and a rectifier read."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.down, self.one = nn.Conv2d(12, 12, 2, 2, bias=bias), nn.Conv2d(12, 12, 1, bias=bias)
        for layer in (self.down, self.one) if bias else ():
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.first(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return super().forward((down + self.one(down) + F.relu(down))[:, :3])


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_without_bias(target: Target, bias: bool) -> None:
    """At dynamic sizes, their scales were applied twice for those who read the result beside others."""
    images = crops(20, 28)
    model = quantize(
        WithoutBias(bias), QuantizationPolicy.parse("deploy", "8", symmetric=True), images, settings=UNFITTED
    )
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


class NegativeFactors(Tokens):
    """A factor for each channel, some of them negative, of what others read, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.factor = nn.Parameter(torch.linspace(-1.0, 2.0, 12).view(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        return super().forward((x + self.one(x * self.factor))[:, :3])


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_negative_factors(target: Target) -> None:
    """At dynamic sizes, a quantizer behind them had its ends the wrong way round."""
    images = crops(20, 28)
    model = quantize(NegativeFactors(), QuantizationPolicy.parse("deploy", "8"), images, settings=UNFITTED)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


class Recurrent(nn.Module):
    """Depthwise and grouped convolutions that run twice, and one that writes a single channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.head, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise, self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 12, 1, groups=2)
        self.gate = nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for _ in range(2):
            x = x + F.relu(self.grouped(self.depthwise(x)))
        return F.pixel_shuffle(self.tail(x * torch.sigmoid(self.gate(x))), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("profile", ["deploy", "integer"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_groups_that_run_twice(target: Target, profile: str, runtime: str) -> None:
    """OpenVINO reshapes the codes of a grouped convolution in place, and the second run read them wrongly."""
    images = crops(20, 28)
    model = quantize(Recurrent(), QuantizationPolicy.parse(profile, "8"), images)
    graph = lower(model, LoweringOptions(target=target))
    check_every_layer(model, graph, random_images(20, 28, seed=5), OPENERS[runtime])


class Gains(nn.Module):
    """Gains per channel behind padding to whole windows, and something between them and a quantizer."""

    def __init__(self, behind: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))
        self.gain = nn.Parameter(torch.linspace(0.2, 2.0, 12).view(1, 12, 1, 1))
        self.mix, self.behind = nn.Linear(12, 12), behind

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.head(x)
        gained = F.pad(x, (0, -width % 5, 0, -height % 5)) * self.gain
        if self.behind is not None:
            x = x + self.body(self.behind(gained))[:, :, :height, :width]
            gained = x
        mixed: Tensor = self.mix(gained.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.tail(mixed[:, :, :height, :width]), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(None, id="transpose"),
        pytest.param(F.relu, id="relu"),
        pytest.param(lambda x: F.leaky_relu(x, 0.2), id="leaky"),
        pytest.param(lambda x: x.clamp(-0.3, 0.4), id="clip"),
    ],
)
def test_gains_that_reach_a_quantizer_through_something_else(
    target: Target, behind: Callable[[Tensor], Tensor] | None
) -> None:
    """OpenVINO moves a transposition out of the way, and makes one operator of gain, rectifier and quantizer."""
    images = crops(21, 28)
    model = quantize(Gains(behind), QuantizationPolicy.parse("deploy", "8"), images, settings=UNFITTED)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(21, 28, seed=5))


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
    images = crops(20, 28)
    model = quantize(Extremes(), QuantizationPolicy.parse("deploy", bits), images)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


class NormalizedSum(nn.Module):
    """A signal and floats are added and normalized as tokens, and vary so little that the epsilon counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.head, self.body, self.tail = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, 12), (12, 12), (12, 12)))
        self.norm, self.mix = nn.LayerNorm(12), nn.Linear(12, 12)
        for layer in (self.head, self.body):
            layer.weight.data *= 0.02
            layer.bias = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.head(x)))
        tokens = x.flatten(2).transpose(1, 2) + F.gelu(x).flatten(2).transpose(1, 2) * 0.7
        mixed: Tensor = self.mix(self.norm(tokens))
        return F.pixel_shuffle(self.tail(mixed.transpose(1, 2).view(x.shape)), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_normalized_sums_of_signals(target: Target) -> None:
    """OpenVINO left the signal's step out, because it takes what is normalized to have no scale."""
    images = crops(20, 28)
    model = quantize(NormalizedSum(), QuantizationPolicy.parse("integer", "8"), images)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


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
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_averages_with_zeros_around(target: Target, runtime: str) -> None:
    """OpenVINO padded codes with 0 instead of the code of zero, and the exporter leaves a divisor out."""
    images = crops(20, 28)
    model = quantize(Averages(), QuantizationPolicy.parse("integer", "8"), images)
    graph = lower(model, LoweringOptions(target=target))
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
    check_every_layer(model, lower(model, LoweringOptions(target="cpu")), random_images(20, 28, seed=5))


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
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_windows_that_reach_beyond_the_border(pool: Callable[[Tensor], Tensor], runtime: str) -> None:
    """OpenVINO divided by fewer, and had windows that PyTorch has not; ONNX Runtime took zeros padded for nothing."""
    images = crops(22, 29)
    model = quantize(PoolsBeyond(pool).eval(), QuantizationPolicy.parse("integer", "8"), images)
    graph = lower(model, LoweringOptions(target="cpu"))
    for size in ((22, 29), (20, 28), (21, 27)):
        check_every_layer(model, graph, random_images(*size, seed=5), OPENERS[runtime])


class OneIndex(nn.Module):
    """Takes one index of the axes of a map behind factors per channel, for a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.tail, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(8, 8)
        self.norm, self.how = nn.BatchNorm2d(8), how
        self.factors = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        means = x.mean((2, 3), keepdim=True)
        if self.how == "batch_norm":
            found = self.norm(means)[:, :, 0, 0]
        elif self.how == "factors":
            found = (x * self.factors)[:, :, 3, 5]
        else:
            found = (x * self.factors)[:, :, 3].mean(2)
        return self.tail(x * torch.sigmoid(self.mix(found))[:, :, None, None])


@pytest.mark.parametrize("how", ["batch_norm", "factors", "row"])
def test_one_index_of_an_axis_behind_factors_per_channel_is_taken(how: str) -> None:
    model = quantize(OneIndex(how), QuantizationPolicy.deploy(LayerBits(8, 8)), crops(48, 48), settings=UNFITTED)
    graph = lower(model, LoweringOptions(target="cpu"))
    image = random_images(40, 56)
    check_every_layer(model, graph, image)
    check_every_layer(model, graph, image, OPENERS["onnxruntime"])
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        found = next(iter(runtime.run({"input": image}).values()))
    assert np.abs(found - model(torch.from_numpy(image)).numpy()).max() < 2.0


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


class PaddedTransposedConvolution(nn.Module):
    """A transposed convolution of stride 2 behind a padding with zeros, as inverse wavelets have it; cut to size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        self.larger = nn.ConvTranspose2d(12, 12, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.larger(F.pad(F.relu(self.first(x)), (1, 1, 1, 1)))
        return self.last(F.relu(larger)[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_padding_in_front_of_transposed_convolutions(target: Target) -> None:
    policy = QuantizationPolicy.parse("integer", "8")
    model = quantize(PaddedTransposedConvolution(), policy, crops(20, 28), settings=UNFITTED)
    check_every_layer(model, lower(model, LoweringOptions(target=target)), random_images(20, 28, seed=5))


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


class Rolled(nn.Module):
    """A convolution's result, perhaps behind an activation function, is rolled; a matrix mixes channels before."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.mix, self.body, self.function = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1), function
        nn.init.normal_(self.body.bias, 0, 0.4)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.head(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.tail(torch.roll(self.function(self.body(mixed)), (1, -2), (2, 3))), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("function", [nn.Identity(), F.gelu])
def test_codes_whose_size_steers_a_roll(function: Callable[[Tensor], Tensor], target: Target) -> None:
    """All channels had the bias of the first one; seen in the whole picture only, as above."""
    model = quantize(Rolled(function), QuantizationPolicy.parse("integer", "8"), crops(32, 36)[:2], settings=UNFITTED)
    image = random_images(33, 50, seed=6)
    with OpenVinoCpu.open_bytes(lower(model, LoweringOptions(target=target)).SerializeToString()) as runtime:
        assert np.abs(runtime.upscale(image) - model(torch.from_numpy(image)).numpy()).mean() < 0.05


class Repeated(nn.Module):
    """A signal joined with itself, before a layer and before a pixel shuffle, as what repeats pixels does."""

    def __init__(self, shuffled: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.shuffled = shuffled
        self.head, self.body, self.both = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(24, 12, 1),
        )
        self.last, self.tail = nn.Conv2d(12, 3, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.head(x)))
        if self.shuffled:
            return self.last(F.pixel_shuffle(torch.cat([x] * 4, 1), 2))
        return F.pixel_shuffle(self.tail(self.both(torch.cat([x, x], 1))), 2)


@pytest.mark.parametrize("shuffled", [False, True])
def test_signals_joined_with_themselves(shuffled: bool) -> None:
    """OpenVINO refused the shuffled ones, and the layers could not be compared where others read both."""
    model = quantize(Repeated(shuffled), QuantizationPolicy.parse("integer", "8"), crops(20, 28), settings=UNFITTED)
    check_every_layer(model, lower(model, LoweringOptions(target="cpu")), random_images(20, 28, seed=5))


class Mirrored(nn.Module):
    """A convolution of an image continued by reflection, whose indices are absolute values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.head, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            last = x.shape[axis] - 1
            index = torch.arange(-1, x.shape[axis] + 1, device=x.device).abs()
            x = x.index_select(axis, last - (last - index).abs())
        return F.pixel_shuffle(self.tail(F.relu(self.head(x))), 2)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_indices_are_reflected_at_one_size(target: Target) -> None:
    """Computed at compilation, absolute values of whole numbers stay negative: pixels of the other end."""
    images = crops(24, 32)
    model = quantize(Mirrored().eval(), QuantizationPolicy.parse("deploy", "8"), images)
    graph = lower(model, LoweringOptions(target=target))
    assert not any(node.op_type == "Abs" for node in graph.graph.node)
    read = openvino.Core().read_model(graph.SerializeToString())
    read.reshape({"input": [1, 3, 24, 32]})
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images[0].numpy())[0]
    np.testing.assert_allclose(found, model(images[0]).numpy(), atol=3.0)
