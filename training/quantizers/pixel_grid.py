"""The grid of the first layer in the `exact` profile: that of 8-bit images."""

from __future__ import annotations

import torch
from torch import Tensor

from odm_deploy.grid import Grid
from training.quantizers.base import ActivationQuantizer


class PixelGrid(ActivationQuantizer):
    """The grid that holds 8-bit images as they are; nothing of it is learned.

    Args:
        pixel_grid: of the network in training, `SuperResolutionNetwork.pixel_grid`.
    """

    def __init__(self, pixel_grid: Grid) -> None:
        super().__init__(pixel_grid.bits)
        self._grid = pixel_grid

    def observe(self, x: Tensor) -> None:
        """Images need no statistics."""

    def initialize(self) -> None:
        """Nothing to set."""

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        grid = self._grid
        codes = torch.clamp(torch.round(x / grid.scale) + grid.zero_point, 0, grid.code_max)
        return (codes - grid.zero_point) * grid.scale

    def grid(self) -> Grid:
        """The static grid."""
        return self._grid
