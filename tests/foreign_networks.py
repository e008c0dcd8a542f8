"""Networks as somebody else might write them; tests name them by import path."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.quantization.model import QuantizedModel

BUILT: list[str] = []
"""What was built here, for tests of what must not be."""


class Enlarger(nn.Module):
    """Residual convolutions, a token mixer and pixel shuffle; images in 0..1."""

    def __init__(self, features: int = 8, scale: int = 2) -> None:
        super().__init__()
        BUILT.append("Enlarger")
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.SiLU(), nn.Conv2d(features, features, 3, padding=1)
        )
        self.mix = nn.Linear(features, features)
        self.shared = nn.Conv2d(features, features, 1)
        self.spare = nn.Conv2d(features, features, 1)
        self.up = nn.Conv2d(features, features * scale**2, 3, padding=1)
        self.last = nn.Conv2d(features, 3, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        deep = self.body(first)
        deep = self.mix(deep.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + first
        deep = self.shared(self.shared(deep))
        return self.last(F.pixel_shuffle(self.up(deep), self.scale)) + F.interpolate(x, scale_factor=self.scale)


def make_enlarger(features: int) -> Enlarger:
    """A function that says what it returns."""
    return Enlarger(features)


def says_nothing(features):
    """A function that does not."""
    BUILT.append("says_nothing")
    return Enlarger(features)


class NotANetwork:
    """Something that must not be called."""

    def __init__(self) -> None:
        BUILT.append("NotANetwork")


def seeded(features: int = 8, scale: int = 2) -> Enlarger:
    """With the same weights every time."""
    torch.manual_seed(3)
    return Enlarger(features, scale).eval()


class DenseBlocks(nn.Module):
    """Blocks of an RRDB network: concatenations, and sums whose terms are scaled by a constant; images in 0..255."""

    def __init__(self, features: int = 8, growth: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.grow = nn.ModuleList(nn.Conv2d(features, growth, 3, padding=1) for _ in range(blocks))
        self.fuse = nn.ModuleList(nn.Conv2d(features + growth, features, 3, padding=1) for _ in range(blocks))
        self.up = nn.Conv2d(features, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep = first = self.first(x)
        for grow, fuse in zip(self.grow, self.fuse, strict=True):
            dense = torch.cat((deep, F.leaky_relu(grow(deep), 0.2)), 1)
            deep = fuse(dense) * 0.2 + deep
        first = torch.add(first, deep)
        first += deep
        return F.pixel_shuffle(self.up(first), 2)


def check_it_stays_close_and_comes_back(
    model: QuantizedModel, module: nn.Module, builder: str, x: Tensor, path: Path
) -> None:
    """That a model at 8 bits is near the `module` it was made of, and the same behind a model.pt; `x` in 0..255."""
    with torch.no_grad():
        error = model(x) - module(x / 255) * 255
    assert 0 < float(error.abs().mean()) < 2.0
    save_model(model, path)
    with trusting(builder):
        assert torch.equal(load_model(path)(x), model(x))
