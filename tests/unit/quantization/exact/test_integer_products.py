"""Integer products: the bits of float32 where sums are exact, and nothing else touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from odm_deploy.grid import Grid
from odm_deploy.quantization.exact import integer_products as module
from odm_deploy.quantization.exact.integer_products import integer_products
from odm_deploy.quantization.fake_quant import grid_codes
from odm_deploy.quantization.layers import FrozenLayer, QuantizedConv2d
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.sequential import fit_in_sequence
from odm_deploy.quantization.weights import WeightCodes
from tests.exact_models import SIZES, calibrated_exact
from tests.factories import random_images, tiny_model

IMAGES = [torch.from_numpy(random_images(14, 18, seed=seed)) for seed in range(2)]
HERE = pytest.mark.skipif(not module._come_out_right(), reason="this CPU or this PyTorch has no integer products")


@pytest.fixture
def convolved(monkeypatch):
    """Names of the layers whose products were integers."""
    names: list[str] = []
    convolve = module._convolve
    monkeypatch.setattr(module, "_convolve", lambda layer, *rest: names.append(layer.name) or convolve(layer, *rest))
    return names


@HERE
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SIZES)
def test_an_exact_model_computes_the_same_bits(name, bits, convolved):
    model = calibrated_exact(name, bits)
    expected = [model(image) for image in IMAGES]
    # Calibration has them, too.
    convolved.clear()
    with integer_products(model):
        found = [model(image) for image in IMAGES]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    powers = [layer for layer in model.layers.values() if bool((layer.scale.log2() % 1 == 0).all())]
    assert sorted(convolved) == sorted([layer.name for layer in powers] * len(IMAGES))
    assert all("forward" not in vars(layer) for layer in model.layers.values())


@HERE
def test_a_grid_may_change_meanwhile():
    model = QuantizedModel(copy.deepcopy(calibrated_exact("edsr", 4).network))
    layer = model.layers["body.0.body.2"]
    with integer_products(model):
        model(IMAGES[0])
        layer.grid = Grid(layer.grid.scale / 2, 1, 4)
        found = model(IMAGES[0])
    assert torch.equal(found, model(IMAGES[0]))


@HERE
@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_the_largest_products_and_every_code(zero_point):
    conv = nn.Conv2d(16, 5, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    codes = torch.full(conv.weight.shape, 127, dtype=torch.int8)
    codes[1::2] = -127
    grid = Grid(0.25, zero_point, 8)
    layer = QuantizedConv2d(
        "it", conv, FrozenLayer(WeightCodes(codes, 2.0 ** torch.arange(5).float(), 8, -128), grid, None)
    )
    model = QuantizedModel(nn.Sequential(layer))  # pyright: ignore[reportArgumentType]
    x = (torch.arange(256.0).reshape(1, 1, 16, 16) - zero_point) * 0.25
    x = torch.cat([x, x.flip(2), torch.full_like(x, 1e9), torch.full_like(x, -1e9)] * 4, 1)
    with integer_products(model):
        found = model(x)
    assert torch.equal(found, model(x))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_point", [0, 1, 2, 3])
def test_codes_are_those_of_the_grid_halfway_between_levels_and_far_away_too(zero_point, bits):
    grid = Grid(0.125, zero_point, bits)
    halves = torch.arange(-2000.0, 2001.0) * (0.125 / 2)
    far = torch.tensor([4.1e6, -4.1e6, 2.0**31, -(2.0**31), 3.4e38, -3.4e38, 1e-45, -0.0])
    x = torch.cat([halves, halves.nextafter(torch.zeros(())), far]).reshape(1, 1, 1, -1)
    assert torch.equal(module._codes(x, grid), grid_codes(x, grid))


@HERE
def test_the_network_that_layers_are_fitted_behind_multiplies_integers(convolved):
    model = calibrated_exact("edsr", 4)
    layers = {name: FrozenLayer(layer.weight_codes, layer.grid, layer.bias) for name, layer in model.layers.items()}
    network = copy.deepcopy(model.network)
    for name, layer in model.layers.items():
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
        conv.weight = nn.Parameter(layer.weight, requires_grad=False)
        conv.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
        network.set_submodule(name, conv)
    convolved.clear()
    fit_in_sequence(network, IMAGES, layers, lambda layer, *_: layer)
    # The run ends at the last layer, once it is fitted.
    assert convolved == list(layers)[:-1]


def test_an_ordinary_model_is_left_alone(convolved):
    model = tiny_model()
    expected = model(IMAGES[0])
    with integer_products(model):
        assert torch.equal(model(IMAGES[0]), expected)
    assert convolved == []


@pytest.mark.parametrize("fault", ["no operator", "saturated"])
def test_a_machine_without_them_multiplies_floats(fault, convolved, monkeypatch):
    convolve = module._convolve

    def faulty(*arguments):
        if fault == "no operator":
            raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv2d_pointwise'")
        return convolve(*arguments).clamp(-32768, 32767)

    model = calibrated_exact("edsr", 4)
    expected = model(IMAGES[0])
    module._come_out_right.cache_clear()
    monkeypatch.setattr(module, "_convolve", faulty)
    try:
        assert not module._come_out_right()
        with integer_products(model):
            assert torch.equal(model(IMAGES[0]), expected)
    finally:
        module._come_out_right.cache_clear()
