"""Convolutions whose padding is a word, uneven, or no zeros: the same function, and quantized like any other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.lowering.lower import LoweringOptions, lower_each
from odm_deploy.networks.explicit_padding import is_explicit, make_padding_explicit
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import OPENERS, random_images
from tests.foreign_networks import check_it_stays_close_and_comes_back

# Torch says so of even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

PADDINGS = {
    "other numbers at the sides": {"kernel_size": (3, 5), "padding": (1, 2)},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, dilated": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same"},
    "same, even kernel, reflected": {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect"},
    "valid": {"kernel_size": 1, "padding": "valid"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "reflected, uneven": {"kernel_size": (1, 5), "padding": (0, 2), "padding_mode": "reflect"},
    "repeated": {"kernel_size": 5, "padding": 2, "padding_mode": "replicate"},
    "around": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "same, around": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
}


class Bordered(nn.Module):
    """A network with one convolution of each padding, the middle one under two names."""

    def __init__(self, paddings: str = "") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        names = paddings.split(";") if paddings else list(PADDINGS)
        self.body = nn.ModuleList([nn.Conv2d(8, 8, **PADDINGS[name]) for name in names])
        self.again = self.body[len(names) // 2]
        self.last = nn.Conv2d(8, 12, 3, padding="same", padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.body:
            x = x + torch.relu(layer(x))
        return nn.functional.pixel_shuffle(self.last(x + self.again(x)), 2)


BUILDER = f"{__name__}:Bordered"
THROUGHOUT = QuantizationPolicy(*[LayerBits(8, 8)] * 4)


def seeded(paddings: str = "") -> Bordered:
    torch.manual_seed(5)
    return Bordered(paddings).eval()


def images():
    return [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(3)]


@pytest.mark.parametrize("name", PADDINGS)
def test_the_function_stays_the_same(name) -> None:
    x = torch.rand(2, 8, 11, 14)
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(8, 8, **PADDINGS[name]))
    expected = module(x)
    make_padding_explicit(module)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [is_explicit(layer) for layer in convolutions] == [True]
    assert torch.equal(module(x), expected)


def test_what_is_explicit_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=(1, 0)))
    conv = module[0]
    make_padding_explicit(module)
    assert module[0] is conv
    assert conv.padding == (1, 0)


def test_a_layer_under_two_names_stays_one() -> None:
    module = seeded()
    make_padding_explicit(module)
    assert module.again is module.body[len(PADDINGS) // 2]


def test_every_layer_is_quantized_and_comes_back(tmp_path) -> None:
    module = seeded()
    kept = copy.deepcopy(module.state_dict())
    model = quantize(module, THROUGHOUT, images(), builder=BUILDER)
    assert list(module.state_dict()) == list(kept), "the caller's module"
    assert len(model.layers) == len(PADDINGS) + 2
    check_it_stays_close_and_comes_back(model, module, BUILDER, images()[0], tmp_path / "model.pt")


@pytest.mark.parametrize(("runtime", "free"), [("onnxruntime", False), ("onnxruntime", True), ("openvino", False)])
def test_both_graphs_compute_the_reference(runtime, free) -> None:
    # OpenVINO's ONNX reader knows no border taken from the other side.
    names = [name for name in PADDINGS if runtime != "openvino" or "around" not in name]
    policy = QuantizationPolicy(*[LayerBits(8, 8)] * 4, free=free)
    model = quantize(seeded(";".join(names)), policy, images())
    x = random_images(18, 26, seed=7)
    expected = model(torch.from_numpy(x)).numpy()
    targets = ("tensorrt", "cpu")
    graphs = lower_each(model, [LoweringOptions(target=each) for each in targets])
    for target, graph in zip(targets, graphs, strict=True):
        with OPENERS[runtime](graph.SerializeToString()) as opened:
            # Ties spread through a dozen layers.
            assert np.quantile(np.abs(opened.upscale(x) - expected), 0.95) < 1.0, target
