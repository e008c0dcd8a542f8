"""Biases, and factors for each channel, which OpenVINO moves through layers or takes as one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.bundle import Target
from odm_deploy.machine.saturating_kernels import openvino_saturates
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.onnx.openvino_faults import wants_fixed_sizes
from tests.every_layer import check_every_layer, crops, quantized_once
from tests.factories import OPENERS, UNFITTED, lowered, random_images


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
    graph = lowered(model, target=target)
    assert wants_fixed_sizes(graph) is not mixing
    check_every_layer(model, graph, random_images(24, 32, seed=5))
    expected = model(images[0]).numpy()
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        difference = np.abs(runtime.upscale(images[0].numpy()) - expected)
    # A code of some thousand may lie on a tie, with AMX, too; where layers are multiplied in float32 more of them do.
    assert difference.mean() < (0.05 if openvino_saturates() else 0.005)


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
    model = quantized_once(Tokens, profile="deploy", bits=bits)
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


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
    model = quantized_once(WithoutBias, bias, profile="deploy", symmetric=True, settings=UNFITTED)
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


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
    model = quantized_once(NegativeFactors, profile="deploy", settings=UNFITTED)
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


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
    model = quantized_once(Gains, behind, profile="deploy", size=(21, 28), settings=UNFITTED)
    check_every_layer(model, lowered(model, target=target), random_images(21, 28, seed=5))


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
    model = quantized_once(NormalizedSum, profile="integer")
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


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
    graph = lowered(model, target="cpu")
    image = random_images(40, 56)
    check_every_layer(model, graph, image)
    check_every_layer(model, graph, image, OPENERS["onnxruntime"])
    with OpenVinoCpu.open_bytes(graph.SerializeToString()) as runtime:
        found = next(iter(runtime.run({"input": image}).values()))
    assert np.abs(found - model(torch.from_numpy(image)).numpy()).max() < 2.0
