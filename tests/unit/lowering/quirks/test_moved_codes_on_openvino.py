"""Codes that are padded, rolled, reflected, joined with themselves or computed twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.bundle import Target
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from tests.every_layer import check_every_layer, crops, quantized_once
from tests.factories import OPENERS, UNFITTED, lowered, random_images


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
    model = quantized_once(Recurrent, profile=profile)
    graph = lowered(model, target=target)
    check_every_layer(model, graph, random_images(20, 28, seed=5), OPENERS[runtime])


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
    model = quantized_once(PaddedTransposedConvolution, profile="integer", settings=UNFITTED)
    check_every_layer(model, lowered(model, target=target), random_images(20, 28, seed=5))


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
    model = quantized_once(Rolled, function, profile="integer", size=(32, 36), images=2, settings=UNFITTED)
    image = random_images(33, 50, seed=6)
    with OpenVinoCpu.open_bytes(lowered(model, target=target).SerializeToString()) as runtime:
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
    check_every_layer(model, lowered(model, target="cpu"), random_images(20, 28, seed=5))


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
    model = quantized_once(Mirrored, profile="deploy", size=(24, 32))
    graph = lowered(model, target=target)
    assert not any(node.op_type == "Abs" for node in graph.graph.node)
    read = openvino.Core().read_model(graph.SerializeToString())
    read.reshape({"input": [1, 3, 24, 32]})
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images[0].numpy())[0]
    np.testing.assert_allclose(found, model(images[0]).numpy(), atol=3.0)
