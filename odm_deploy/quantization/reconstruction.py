"""Grids, gains and weight codes by the error of each layer's output, on patches of the float network's activations.

Two passes over the layers, because what happens between them (scales with few bits, power-of-two grids refined) depends
on all layers: `fit_input` chooses what is in front of the weights, `fit_weights` the codes behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.grid import MAX_BITS, Grid
from odm_deploy.quantization.equalization import (
    EXPONENTS,
    channel_offsets,
    offset_extremes,
    offset_inputs,
    offset_weights,
)
from odm_deploy.quantization.fake_quant import fake_quantize
from odm_deploy.quantization.layers import ChannelOffsets, FrozenLayer
from odm_deploy.quantization.observers import InputObserver
from odm_deploy.quantization.patches import LayerPatches
from odm_deploy.quantization.ranges import RangeMethod, choose_grid
from odm_deploy.quantization.rounding import round_to_output
from odm_deploy.quantization.weights import per_output, quantize_weight

TRIED_ON = 512
"""Patches that candidates are compared on; there are about a hundred for each layer."""
ROUNDING_LEFT = 0.25
"""Share of the weights' error that adaptive rounding leaves, by the squared error: what a gain is judged with."""
WIDENED = (0.55, 0.7, 0.8, 0.9, 1.1, 1.25, 1.6)
"""Factors of a bound that are tried."""
SEARCHED = 2
"""Of the gains, those with the smallest error whose range is searched."""


@torch.no_grad()
def fit_input(
    layer: FrozenLayer, patches: LayerPatches, *, equalize: bool, search: bool, adaptive: bool, symmetric: bool = False
) -> FrozenLayer:
    """The layer with the offsets and the grid that give its output the smallest error; codes are the nearest ones.

    Args:
        layer: on an ordinary grid, mid-tread weight codes.
        patches: of its input.
        equalize: whether offsets are tried.
        search: whether ranges are judged by the output, too, and not only by the error of the input.
        adaptive: whether adaptive rounding follows, so that errors of the weights count for less.
        symmetric: at 8 bits zero stays in the middle of the grid.
    """
    tried = _few(patches)
    choices = _choices(patches) if equalize else (None,)
    candidates = [_Candidate.of(layer, tried, offsets, adaptive, symmetric) for offsets in choices]
    candidates.sort(key=lambda candidate: candidate.error)
    if search:
        candidates = [candidate.searched() for candidate in candidates[:SEARCHED]]
    return min(candidates, key=lambda candidate: candidate.error).layer


def _few(patches: LayerPatches) -> LayerPatches:
    return dataclasses.replace(patches, inputs=patches.inputs[:, :: max(patches.inputs.shape[1] // TRIED_ON, 1)])


@torch.no_grad()
def fit_weights(
    layer: FrozenLayer,
    patches: LayerPatches,
    arrived: Tensor,
    outputs: Sequence[Tensor] | None = None,
    *,
    round_weights: bool = True,
    correct_bias: bool = True,
) -> FrozenLayer:
    """The layer with weight codes, and where it has one a bias, chosen by its output; scales and grid stay.

    Mid-rise codes stay as they are.

    Args:
        layer: with its grid and offsets chosen.
        patches: of its input in the float network.
        arrived: the same patches [G, N, K] in the quantized network.
        outputs: `float_outputs`, where somebody has them already.
        round_weights: off keeps the nearest codes.
        correct_bias: off keeps the bias.
    """
    weight = layer.weight
    if weight.step != 1:
        return layer
    targets, _ = offset_weights(patches, layer.offsets)
    wanted = float_outputs(layer, patches) if outputs is None else outputs
    quantized = fake_quantize(offset_inputs(arrived, patches, layer.offsets), layer.grid)
    width = patches.weight.shape[1]
    bias = _bias(layer)
    scale = weight.scale.expand(weight.codes.shape[0])
    codes, biases = [], []
    for group in range(len(quantized)):
        own = slice(group * width, (group + 1) * width)
        found = round_to_output(
            targets[group],
            bias[own],
            scale[own],
            2 ** (weight.bits - 1) - 1,
            wanted[group],
            quantized[group],
            round_weights=round_weights,
            correct_bias=correct_bias and layer.bias is not None,
        )
        codes.append(found.codes)
        biases.append(found.bias)
    chosen = torch.cat(codes).reshape(weight.codes.shape).to(torch.int8)
    return dataclasses.replace(
        layer,
        weight=dataclasses.replace(weight, codes=chosen),
        bias=None if layer.bias is None else torch.cat(biases).float(),
    )


@torch.no_grad()
def float_outputs(layer: FrozenLayer, patches: LayerPatches) -> list[Tensor]:
    """What the float layer makes of its patches, [N, O/G] for each group: what `fit_weights` brings codes close to."""
    inputs = offset_inputs(patches.inputs, patches, layer.offsets)
    targets, _ = offset_weights(patches, layer.offsets)
    biases = _bias(layer).reshape(len(inputs), -1)
    return [rows @ weight.T + bias for rows, weight, bias in zip(inputs, targets, biases, strict=True)]


def _bias(layer: FrozenLayer) -> Tensor:
    return torch.zeros(len(layer.weight.codes)) if layer.bias is None else layer.bias.detach()


def divided_by_gains(weights: Mapping[str, Tensor], layers: Mapping[str, FrozenLayer]) -> dict[str, Tensor]:
    """The float weights that the codes of `layers` stand for: divided by their gains."""
    return {name: _divided(weight, layers[name].offsets) for name, weight in weights.items()}


def _divided(weight: Tensor, offsets: ChannelOffsets | None) -> Tensor:
    """A weight [O, C/G, ...] for inputs that were multiplied by gains [C]."""
    if offsets is None or offsets.gain is None:
        return weight
    groups = len(offsets.gain) // weight.shape[1]
    by_group = weight.detach().float().unflatten(0, (groups, -1))
    gain = offsets.gain.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (by_group / gain).flatten(0, 1)


@dataclass(frozen=True)
class _Candidate:
    """Offsets with a grid, and what they do to the layer's output."""

    layer: FrozenLayer
    inputs: Tensor
    """Few patches, offset."""
    weight: Tensor
    """The float weights that fit them."""
    extremes: Tensor
    """Of every channel, offset, [C, n]: few patches miss them, and a gain may push them beyond the grid."""
    extreme_share: Tensor
    """What an extreme value's squared error adds to `error`, [C, 1]."""
    weights_error: float
    """Mean squared error of the output that comes from the weights' rounding."""
    error: float
    """That, and what comes from the input's."""
    symmetric: bool
    """At 8 bits zero is in the middle of the grid."""

    @classmethod
    def of(
        cls,
        layer: FrozenLayer,
        patches: LayerPatches,
        offsets: ChannelOffsets | None,
        adaptive: bool,
        symmetric: bool = False,
    ) -> _Candidate:
        """With the grid of the smallest error on offset inputs, or without offsets on the layer's own."""
        inputs = offset_inputs(patches.inputs, patches, offsets)
        weight, bias = offset_weights(patches, offsets)
        extremes = offset_extremes(patches, offsets)
        # [G, O/G, C/G * k] -> [C, 1]
        share = weight.unflatten(2, (-1, patches.kernel_size)).square().sum((1, 3)).reshape(-1, 1)
        share = share / (patches.pixels * weight.shape[0] * weight.shape[1])
        codes, grid = layer.weight, layer.grid
        grids = [grid]
        symmetric = symmetric and grid.bits == MAX_BITS
        if offsets is not None:
            shaped = weight.reshape(codes.codes.shape)
            codes = quantize_weight(shaped, codes.bits, per_channel=len(codes.scale) > 1, search_mse=True)
            observer = InputObserver(patches.name)
            observer.add(inputs)
            grids = [choose_grid(observer, grid.bits, RangeMethod.MSE, symmetric=symmetric)]
            observer.add(extremes)
            grids.append(choose_grid(observer, grid.bits, RangeMethod.MINMAX, symmetric=symmetric))
        levels = (codes.codes.float() * per_output(codes.scale, codes.codes)).reshape(weight.shape)
        error = float((inputs @ (levels - weight).transpose(1, 2)).square().mean())
        chosen = FrozenLayer(codes, grid, layer.bias if offsets is None else bias, offsets)
        left = error * (ROUNDING_LEFT if adaptive else 1.0)
        found = cls(chosen, inputs, weight, extremes, share, left, torch.inf, symmetric)
        return min((found.on(each) for each in grids), key=lambda each: each.error)

    def on(self, grid: Grid) -> _Candidate:
        """The same offsets on another grid."""
        moved = (fake_quantize(self.inputs, grid) - self.inputs) @ self.weight.transpose(1, 2)
        beyond = self.extremes - self.extremes.clamp(grid.lower, grid.upper)
        error = float(moved.square().mean()) + float((beyond.square() * self.extreme_share).sum()) + self.weights_error
        return dataclasses.replace(self, layer=dataclasses.replace(self.layer, grid=grid), error=error)

    def searched(self) -> _Candidate:
        """With the best range: the upper bound first, which most features reach further, then the lower one, twice."""
        best = self
        for side in (1, 0) * 2:
            bounds = (best.layer.grid.lower, best.layer.grid.upper)
            for factor in WIDENED if bounds[side] else ():
                if self.symmetric:
                    moved = (bounds[0] * factor, bounds[1] * factor)
                else:
                    moved = (bounds[0] * factor, bounds[1]) if side == 0 else (bounds[0], bounds[1] * factor)
                other = self.on(Grid.from_range(*moved, self.layer.grid.bits, symmetric=self.symmetric))
                best = min(best, other, key=lambda candidate: candidate.error)
        return best


def _choices(patches: LayerPatches) -> Iterator[ChannelOffsets | None]:
    yield None
    for shifted in (False,) if patches.padded else (False, True):
        for alpha, beta in EXPONENTS:
            yield channel_offsets(patches, alpha, beta, shifted=shifted)
