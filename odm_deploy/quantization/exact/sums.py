"""Scales with short mantissas: convolution sums that come out the same in any order, on any runtime.

Float32 holds 24 significant bits. A quantized convolution adds products (q - z) * c of an input and a weight code, each
times s_x * s_w. If both scales have few significant bits, s_x = m_x * 2^e with an integer m_x < 2^k and s_w likewise,
then every product, and every partial sum in any order, is an integer multiple of one unit 2^(e_x + e_w), and as long as

    sum |c| * max |q - z| * m_x * m_w + |bias| in the same unit  <  2^24

no float32 addition ever rounds: float64, float32 with sums in another order, and int32 accumulators give the same bits.
What is left to differ between runtimes are the float layers in front of the body, and those are rounded likewise where
a network knows how (`SuperResolutionNetwork.round_float_edges`).

Codes are chosen anew for the rounded scales. Four significant bits move a scale by at most 6 %; the fewer bits the
codes have, the more are left for the scales. At 8 bits hardly any are, and some layers would need more than there are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from odm_deploy.grid import MAX_BITS, Grid, nearest_zero_point
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.power_of_two import FLOAT32_BITS, as_integer, common_exponent, round_to_multiples
from odm_deploy.quantization.weights import WeightCodes, nearest_codes

SPLITS = ((6, 6), (5, 5), (4, 4), (3, 3), (2, 3), (2, 2), (1, 2), (1, 1))
"""Significant bits of the input's and the weights' scale, best first. Weights get the larger half: their scales are per
channel, and an input's range may better be too wide than too narrow."""
AT_8_BITS = SPLITS[:5]
"""Those that 8 bits are worth: shorter scales waste a good part of a bit, which shows at this width."""
LARGEST_SHRINKAGE = 0.06
"""How much of a range rounding a scale down may cut off; beyond it the scale is rounded up, because clipping costs more
than coarser levels."""


def round_significand(values: Tensor, bits: int) -> Tensor:
    """`values` (float, any shape, > 0) rounded to `bits` significant bits: nearest, or up where that cuts much."""
    mantissa, exponent = torch.frexp(values.double())
    scaled = torch.ldexp(mantissa, torch.tensor(bits))
    nearest = torch.round(scaled)
    chosen = torch.where(nearest < scaled * (1.0 - LARGEST_SHRINKAGE), torch.ceil(scaled), nearest)
    return torch.ldexp(chosen, exponent - bits).to(values.dtype)


def with_exact_sums(layers: Mapping[str, FrozenLayer], weights: Mapping[str, Tensor]) -> dict[str, FrozenLayer] | None:
    """All layers with scales short enough that their sums are exact; None where one cannot have such scales.

    All or none, because a single layer that rounds lets runtimes drift apart.

    Args:
        layers: by name; mid-tread weight codes on ordinary grids (others cannot be rounded here).
        weights: the float weights [O, ...] that the codes stand for, by name, to choose codes anew.
    """
    exact = {name: _with_exact_sums(layer, weights[name]) for name, layer in layers.items()}
    complete = {name: layer for name, layer in exact.items() if layer is not None}
    return complete if len(complete) == len(exact) else None


def _with_exact_sums(layer: FrozenLayer, weight: Tensor) -> FrozenLayer | None:
    """The layer on the longest scales whose sums are exact; None where even powers of two are too long."""
    if layer.grid.is_free or layer.weight.step != 1:
        return None
    eight = layer.grid.bits == layer.weight.bits == MAX_BITS
    for input_bits, weight_bits in AT_8_BITS if eight else SPLITS:
        rounded = _rounded(layer, weight, input_bits, weight_bits)
        if sum_bound_bits(rounded) + input_bits + weight_bits <= FLOAT32_BITS:
            return rounded
    return None


def with_sums_kept_exact(layer: FrozenLayer, exact: FrozenLayer) -> FrozenLayer:
    """A layer whose codes and bias were chosen anew, its bias rounded; where its sums would round, `exact` itself."""
    unit = layer.weight.scale.double() * layer.grid.scale
    bias = None if layer.bias is None else round_to_multiples(layer.bias.detach().float(), unit)
    rounded = dataclasses.replace(layer, bias=bias)
    return rounded if _needed_bits(rounded) <= FLOAT32_BITS else exact


def significant_bits(values: Tensor) -> int:
    """Bits of the longest significand among `values` (float32, all > 0)."""
    return max(as_integer(value)[0].bit_length() for value in values.tolist())


def sums_are_exact(model: QuantizedModel) -> bool:
    """Whether no sum in any quantized layer of `model` can round."""
    layers = (FrozenLayer(layer.weight_codes, layer.grid, layer.bias) for layer in model.layers.values())
    return all(not layer.grid.is_free and _needed_bits(layer) <= FLOAT32_BITS for layer in layers)


def _needed_bits(layer: FrozenLayer) -> float:
    """Bits of the largest sum in the unit that all products and the bias are multiples of."""
    scale_bits = significant_bits(torch.tensor([layer.grid.scale])) + significant_bits(layer.weight.scale)
    halvings = 0 if layer.bias is None else -min(common_exponent(_in_products(layer, layer.bias).numpy()), 0)
    return sum_bound_bits(layer) + scale_bits + halvings


def _in_products(layer: FrozenLayer, bias: Tensor) -> Tensor:
    """A bias in units of input scale * weight scale, float64."""
    return bias.double() / (layer.weight.scale.double() * layer.grid.scale)


def sum_bound_bits(layer: FrozenLayer) -> float:
    """Bits that the largest possible |partial sum| needs, in products of codes; the scales' own bits come on top."""
    largest_input = max(layer.grid.zero_point, layer.grid.code_max - layer.grid.zero_point)
    sums = layer.weight.codes.long().abs().flatten(1).sum(1) * largest_input
    if layer.bias is not None:
        sums = sums + torch.ceil(_in_products(layer, layer.bias).abs()).long()
    return math.log2(max(int(sums.max()), 1))


def _rounded(layer: FrozenLayer, weight: Tensor, input_bits: int, weight_bits: int) -> FrozenLayer:
    """Round both scales, then choose zero point, weight codes and bias for them."""
    grid, codes = layer.grid, layer.weight
    scale = float(round_significand(torch.tensor(grid.scale, dtype=torch.float64), input_bits))
    zero_point = grid.zero_point
    if not grid.is_symmetric:
        zero_point = nearest_zero_point(grid.lower, scale, grid.bits, exact_ties=True)
    new_grid = Grid(scale, zero_point, grid.bits)
    weight_scale = round_significand(codes.scale, weight_bits)
    new_codes = nearest_codes(weight.detach().float(), weight_scale, codes.bits).to(torch.int8)
    bias = (
        None if layer.bias is None else round_to_multiples(layer.bias.detach().float(), weight_scale.double() * scale)
    )
    return FrozenLayer(WeightCodes(new_codes, weight_scale, codes.bits, codes.first), new_grid, bias, layer.offsets)
