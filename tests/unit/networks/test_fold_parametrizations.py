"""Weights computed anew in every run, such as weight norm's: folded, and quantized like any other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from odm_deploy import quantize
from odm_deploy.networks.folding import fold_parametrizations
from odm_deploy.networks.loading import load_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import random_images
from tests.foreign_networks import check_it_stays_close_and_comes_back

NORMS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm, as it was": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, as it was": spectral_norm,
}
THROUGHOUT = QuantizationPolicy(*[LayerBits(8, 8)] * 4)
BUILDER = f"{__name__}:Normed"

# Torch says so of its older weight norm, which is the one that checkpoints have.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Normed(nn.Module):
    """A small network as WDSR is trained: every convolution normed."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        normed = NORMS[norm]
        self.head = normed(nn.Conv2d(3, 8, 3, padding=1))
        self.body = nn.Sequential(normed(nn.Conv2d(8, 16, 1)), nn.ReLU(), normed(nn.Conv2d(16, 8, 3, padding=1)))
        self.tail = nn.Sequential(normed(nn.Conv2d(8, 12, 3, padding=1)), nn.PixelShuffle(2))
        self.hyperparameters = {"norm": norm}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        return self.tail(x + self.body(x))


def seeded(norm: str) -> Normed:
    torch.manual_seed(2)
    module = Normed(norm)
    with torch.no_grad():
        for _ in range(15):
            # Spectral norms are found step by step, while a network is trained.
            module(torch.rand(1, 3, 8, 8))
    return module.eval()


def images():
    return [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(3)]


@pytest.mark.parametrize("norm", NORMS)
def test_the_function_stays_the_same(norm) -> None:
    module = seeded(norm)
    x = torch.rand(1, 3, 8, 9)
    expected = module(x)
    fold_parametrizations(module)
    assert torch.equal(module(x), expected)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert all(isinstance(layer.weight, nn.Parameter) for layer in convolutions)
    assert not any(parametrize.is_parametrized(layer) for layer in convolutions)
    copy.deepcopy(module)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_quantized_and_comes_back(norm, tmp_path) -> None:
    module = seeded(norm)
    keys = list(module.state_dict())
    model = quantize(module, THROUGHOUT, images())
    assert list(module.state_dict()) == keys, "the caller's module"
    assert len(model.layers) == 4
    check_it_stays_close_and_comes_back(model, module, BUILDER, images()[0], tmp_path / "model.pt")


@pytest.mark.parametrize("norm", NORMS)
def test_its_weights_file_is_read(norm, tmp_path) -> None:
    module = seeded(norm)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    loaded = load_network(tmp_path / "weights.pth", network=BUILDER, settings={"norm": norm})
    x = images()[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x / 255) * 255)
