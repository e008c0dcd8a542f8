import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.fake_quant import dequantize_weight, fake_quantize
from odm_deploy.quantization.layers import FrozenLayer, QuantizedConv2d, QuantizedLinear, quantized_layer
from odm_deploy.quantization.weights import quantize_weight

GRID = Grid(0.1, 5, 4)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2), groups=2),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    ],
)
def test_a_convolution_is_the_float_one_on_quantized_input_and_weight(conv):
    codes = quantize_weight(conv.weight, 4)
    layer = quantized_layer("c", conv, FrozenLayer(codes, GRID, conv.bias))
    x = torch.randn(2, 4, 9, 11)
    expected = F.conv2d(
        fake_quantize(x, GRID),
        dequantize_weight(codes.codes, codes.scale),
        conv.bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    assert isinstance(layer, QuantizedConv2d)
    assert torch.equal(layer(x), expected)


def test_a_linear_layer_is_the_float_one_on_quantized_input_and_weight():
    linear = nn.Linear(7, 3)
    codes = quantize_weight(linear.weight, 3, per_channel=False)
    layer = quantized_layer("fc", linear, FrozenLayer(codes, GRID, linear.bias))
    x = torch.randn(2, 5, 7)
    assert isinstance(layer, QuantizedLinear)
    assert torch.equal(
        layer(x), F.linear(fake_quantize(x, GRID), dequantize_weight(codes.codes, codes.scale), linear.bias)
    )


def test_a_free_grid_pads_with_the_level_nearest_zero():
    grid = Grid.free(0.3, 2.4, 3)
    conv = nn.Conv2d(1, 1, 3, padding=(1, 2), bias=False)
    codes = quantize_weight(torch.ones(1, 1, 3, 3), 2)
    layer = quantized_layer("c", conv, FrozenLayer(codes, grid, None))
    x = torch.full((1, 1, 1, 1), grid.upper)
    border = grid.pad_value
    assert border == pytest.approx(0.3)
    # One pixel of the largest level; the other eight taps see the padding.
    expected = torch.full((1, 1, 1, 3), grid.upper + 8 * border)
    torch.testing.assert_close(layer(x), expected)


def test_after_double_everything_is_computed_in_float64():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    layer = quantized_layer("c", conv, FrozenLayer(quantize_weight(conv.weight, 4), GRID, conv.bias))
    x = torch.randn(1, 2, 5, 5)
    single, double = layer(x), layer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=1e-5)
    assert not torch.equal(single.double(), double)


def test_a_tap_sees_the_input_before_quantization_and_may_replace_it():
    conv = nn.Conv2d(1, 1, 1)
    layer = quantized_layer("c", conv, FrozenLayer(quantize_weight(conv.weight, 4), GRID, conv.bias))
    x, other = torch.randn(2, 1, 1, 2, 2)
    untapped = layer(other)
    seen: list[torch.Tensor] = []

    def tap(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return other

    layer.tap = tap
    assert torch.equal(layer(x), untapped)
    assert len(seen) == 1
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Conv2d(1, 1, 3, padding="same")],
)
def test_other_paddings_are_refused(conv):
    with pytest.raises(InputError, match="explicit zero padding"):
        quantized_layer("c", conv, FrozenLayer(quantize_weight(conv.weight, 4), GRID, conv.bias))


def test_other_layers_are_refused():
    with pytest.raises(InputError, match="it is a PReLU"):
        quantized_layer("act", nn.PReLU(), FrozenLayer(quantize_weight(torch.ones(1, 1), 4), GRID, None))


def test_codes_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\[1, 1\] against \[3, 7\]"):
        quantized_layer("fc", nn.Linear(7, 3), FrozenLayer(quantize_weight(torch.ones(1, 1), 4), GRID, None))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(4, 6, bias=False)])
def test_code_that_asks_a_layer_for_its_parameters_finds_those_of_the_float_one(layer):
    weight = quantize_weight(layer.weight, 8)
    quantized = quantized_layer("layer", layer, FrozenLayer(weight, GRID, layer.bias))
    found = dict(quantized.named_parameters())
    assert {name: value.shape for name, value in found.items()} == {n: p.shape for n, p in layer.named_parameters()}
    assert torch.equal(next(quantized.parameters()), quantized.weight)
    block = nn.Sequential(quantized, nn.ReLU())
    assert next(block.parameters()).dtype == torch.float32
    assert sum(parameter.numel() for parameter in block.parameters()) == 0
    assert next(block.double().parameters()).dtype == next(quantized.parameters()).dtype == torch.float64
