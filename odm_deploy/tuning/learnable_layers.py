"""Frozen layers that learn on: range, weights, weight scales and bias, starting exactly where calibration left them.

ODM's quantizers with what a short run needs: a range [l, u] learned in units of its width, zero snapped to a level in
the forward pass already; weights with a learned clipping bound per channel. Each float weight starts inside the
rounding cell of its code, so that the first forward pass is the calibrated model's, also where calibration did not
round to the nearest.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.fake_quant import fake_quantize
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer
from odm_deploy.quantization.straight_through.range import free_grid, range_quantize, snapped_grid
from odm_deploy.quantization.straight_through.symmetric import symmetric_codes, symmetric_quantize
from odm_deploy.quantization.weights import WeightCodes, per_output

_IN_CELL = 0.49
"""How far from its code a float weight may start, in steps: less than half, or it would be another code."""
_FITTED = 0.25
"""The same where calibration did not choose the nearest code. At the cell's edge the first few steps, which are mostly
noise, would take all of these choices back: 80 of them cost Compact 2.1 dB at 4 bits, and bring 0.3 dB from here."""
_SMALLEST = 0.05
"""Of a learned width or bound, in units of its first value."""


class LearnableLayer(nn.Module):
    """A frozen layer's forward pass with straight-through gradients.

    Args:
        frozen: the layer; left as it is.
        weight: the float weight [O, ...] its codes were made of; None starts from the codes' levels.
        power_of_two: scales are powers of two (the `exact` profile).
        fixed_grid: its input's grid does not learn.

    Raises:
        InputError: a layer with a gate.
    """

    bound_unit: Tensor
    range_unit: Tensor

    def __init__(
        self,
        frozen: QuantizedLayer,
        weight: Tensor | None = None,
        *,
        power_of_two: bool = False,
        fixed_grid: bool = False,
    ) -> None:
        super().__init__()
        if frozen.gate is not None:
            raise InputError(f"cannot tune {frozen.name}", why="a gate computes its range from each image")
        self.frozen = copy.deepcopy(frozen)
        self.name, self.power_of_two = frozen.name, power_of_two
        codes, grid = frozen.weight_codes, frozen.grid
        self.mid_rise = codes.step == 2
        self.weight = nn.Parameter(_inside_cells(codes, weight if weight is None else _behind_gain(weight, frozen)))
        self.bias = None if frozen.bias is None else nn.Parameter(frozen.bias.clone())
        last = codes.last if self.mid_rise else 2 ** (codes.bits - 1) - 1
        self.register_buffer("bound_unit", per_output(codes.scale, codes.codes) * last)
        self.register_buffer("range_unit", torch.tensor(grid.upper - grid.lower))
        self.bound = nn.Parameter(torch.ones_like(self.bound_unit))
        learns = not fixed_grid
        self.lower = nn.Parameter(torch.tensor(grid.lower / (grid.upper - grid.lower)), requires_grad=learns)
        self.upper = nn.Parameter(torch.tensor(grid.upper / (grid.upper - grid.lower)), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize, multiply, add the bias."""
        frozen = self.frozen
        levels = range_quantize(
            frozen.offset(frozen.pad(x)),
            *self._range,
            frozen.grid.bits,
            free=frozen.grid.is_free,
            power_of_two=self.power_of_two,
        )
        weight = symmetric_quantize(
            self.weight, self._bound, frozen.weight_bits, mid_rise=self.mid_rise, power_of_two=self.power_of_two
        )
        return frozen.product(levels, weight, self.bias)

    @torch.no_grad()
    def project(self) -> None:
        """Bring ranges and bounds back to where they mean something, after each optimizer step."""
        if not self.frozen.grid.is_free:
            self.lower.clamp_(max=0.0)
            self.upper.clamp_(min=0.0)
        self.upper.copy_(torch.maximum(self.upper, self.lower + _SMALLEST))
        self.bound.clamp_(min=_SMALLEST)

    @torch.no_grad()
    def freeze(self) -> FrozenLayer:
        """What was learned, as integers."""
        frozen = self.frozen
        codes, scale = symmetric_codes(
            self.weight, self._bound, frozen.weight_bits, mid_rise=self.mid_rise, power_of_two=self.power_of_two
        )
        old = frozen.weight_codes
        weight = WeightCodes(codes.to(torch.int8), scale.reshape(-1), old.bits, old.first, old.step)
        bias = None if self.bias is None else self.bias.detach().clone()
        return FrozenLayer(weight, self._grid() if self.lower.requires_grad else frozen.grid, bias, frozen.offsets)

    @property
    def _bound(self) -> Tensor:
        return self.bound * self.bound_unit

    @property
    def _range(self) -> tuple[Tensor, Tensor]:
        return self.lower * self.range_unit, self.upper * self.range_unit

    def _grid(self) -> Grid:
        bits = self.frozen.grid.bits
        lower, upper = (bound.detach() for bound in self._range)
        if self.frozen.grid.is_free:
            scale, center = free_grid(lower, upper, bits)
            return Grid(scale.item(), 2 ** (bits - 1), bits, center=center.item())
        scale, zero_point = snapped_grid(lower, upper, bits, power_of_two=self.power_of_two)
        return Grid(scale.item(), int(zero_point.item()), bits)


class PassingSignal(nn.Module):
    """A tensor between layers on its grid, with straight-through gradients; 8 bits have nothing to learn."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        bounded = x.clamp(self.grid.lower, self.grid.upper)
        return bounded + (fake_quantize(x.detach(), self.grid) - bounded).detach()


def _behind_gain(weight: Tensor, frozen: QuantizedLayer) -> Tensor:
    """The weights that give the same product behind the layer's gain, where it has one; float32, as `weight`."""
    if frozen.gain is None:
        return weight.detach().float()
    inputs = frozen.gain.numel() // weight.shape[1]
    gain = frozen.gain.reshape(inputs, 1, -1).expand(inputs, weight.shape[0] // inputs, -1).reshape(weight.shape[:2])
    return weight.detach().float() / gain.reshape(*gain.shape, *[1] * (weight.dim() - 2))


def _inside_cells(codes: WeightCodes, weight: Tensor | None) -> Tensor:
    """Float weights whose nearest codes are `codes`, as near to `weight` as that allows; float32 [O, ...]."""
    scale = per_output(codes.scale, codes.codes)
    levels = codes.codes.float() * scale
    if weight is None:
        return levels
    cell = codes.step * scale
    reach = torch.where((weight - levels).abs() > 0.5 * cell, _FITTED * cell, _IN_CELL * cell)
    return torch.minimum(torch.maximum(weight, levels - reach), levels + reach)
