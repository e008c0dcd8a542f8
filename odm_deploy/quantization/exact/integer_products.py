"""Convolutions of 8-bit codes by the processor's integer products: four times as fast as floats, and the same numbers.

On power-of-two grids a sum of products is a whole number times a power of two, which float32 and int32 hold alike. So
the many runs that only compare grids and codes multiply integers, where the machine does so without saturating. What
is compared with other runtimes never does: the reference is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from odm_deploy.grid import Grid
from odm_deploy.quantization.layers import FrozenLayer, QuantizedConv2d
from odm_deploy.quantization.model import QuantizedModel, computed_by
from odm_deploy.quantization.weights import WeightCodes

_WHOLE = torch.tensor(1.5 * 2.0**23)


@contextmanager
def integer_products(model: QuantizedModel) -> Generator[None]:
    """While this lasts, convolutions of `model` on power-of-two scales multiply integers; all others are as before.

    Weights have to stay as they are; grids may change.
    """
    packed: dict[QuantizedConv2d, tuple[Grid, tuple[Tensor, ...]]] = {}

    def forward(layer: QuantizedConv2d, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return inner(x)
        codes = _codes(x, layer.grid)
        if layer not in packed or packed[layer][0] != layer.grid:
            packed[layer] = layer.grid, _packed(layer, codes)
        return _convolve(layer, codes, packed[layer][1])

    layers = [layer for layer in model.layers.values() if isinstance(layer, QuantizedConv2d) and _is_exact(layer)]
    with computed_by(layers if layers and _come_out_right() else (), forward):
        yield


def _is_exact(layer: QuantizedConv2d) -> bool:
    """Whether codes and weight codes are all there is to a convolution, on power-of-two scales."""
    plain = layer.offsets is None and layer.gate is None and layer.tap is None and layer.rounds_input
    short = layer.grid.is_power_of_two and bool((torch.frexp(layer.scale).mantissa == 0.5).all())
    return plain and short and not layer.grid.is_free and layer.groups == 1


def _codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes of float32 `x` as uint8, same shape, a pixel's channels side by side, as kernels like them.

    Next to `_WHOLE` float32 holds nothing but whole numbers, in its lowest bits: adding it rounds half to even.
    """
    zero = float(_WHOLE) - grid.zero_point
    values = torch.add(_WHOLE, x, alpha=1.0 / grid.scale).clamp_(zero, zero + grid.code_max)
    codes = values.view(torch.int32).to(torch.uint8).add_(grid.zero_point)
    return codes.contiguous(memory_format=torch.channels_last)


def _packed(layer: QuantizedConv2d, codes: Tensor) -> tuple[Tensor, ...]:
    """The layer's weight codes as the operator wants them, their scales and zero points."""
    scale = layer.scale.expand(len(layer.codes)).contiguous()
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    grid, shape = layer.grid, list(codes.shape)
    weight = torch.ops.onednn.qconv_prepack(layer.codes, scale, grid.scale, grid.zero_point, *geometry, shape)
    return weight, scale, torch.zeros(len(scale), dtype=torch.int64)


def _convolve(layer: QuantizedConv2d, codes: Tensor, weight: tuple[Tensor, ...]) -> Tensor:
    """uint8 [N, I, H, W] to float32 [N, O, H', W'], both with channels last."""
    grid, geometry = layer.grid, (layer.stride, layer.padding, layer.dilation, layer.groups)
    in_floats = 1.0, 0, torch.float32, "none", [], ""
    return torch.ops.onednn.qconv2d_pointwise(
        codes, grid.scale, grid.zero_point, *weight, layer.bias, *geometry, *in_floats
    )


@cache
def _come_out_right() -> bool:
    """Whether this machine and this PyTorch have integer products, and none of them saturates.

    CPUs without VNNI add pairs of products in 16 bits. The operator is not one that PyTorch documents.
    """
    conv = torch.nn.Conv2d(32, 16, 3, padding=1)
    codes = torch.full(conv.weight.shape, 127, dtype=torch.int8)
    codes[::2] = -127
    layer = QuantizedConv2d("", conv, FrozenLayer(WeightCodes(codes, torch.ones(16), 8, -128), Grid(1.0, 2, 8), None))
    x = torch.full((1, 32, 4, 4), 253.0)
    with torch.no_grad():
        try:
            largest = _codes(x, layer.grid)
            found = _convolve(layer, largest, _packed(layer, largest))
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.equal(found, layer(x))
