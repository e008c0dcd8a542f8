"""Freezing an exact model: biases, coarser scales where sums are too long, and what is refused."""

from __future__ import annotations

import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact.bounds import prove
from odm_deploy.quantization.exact.freeze import bias_unit, freeze_exact
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.policy import quantizable_layers
from odm_deploy.quantization.weights import quantize_weight
from tests.exact_models import calibrated_exact, small_network


def on_powers_of_two(grid_scale: float = 0.25) -> tuple[QuantizedModel, dict[str, torch.Tensor]]:
    """A model on power-of-two grids whose biases have all their digits, and its float weights."""
    network = small_network("edsr")
    network.make_exact()
    weights = {name: network.get_submodule(name).weight.detach() for name in quantizable_layers(network)}
    layers = {
        name: FrozenLayer(
            quantize_weight(weight, 8, power_of_two=True),
            network.pixel_grid if name == "head.0" else Grid(grid_scale, 128, 8),
            network.get_submodule(name).bias,
        )
        for name, weight in weights.items()
    }
    return freeze(network, layers, {"method": "a test"}), weights


def test_biases_land_on_the_products_unit_and_nothing_else_moves():
    model, _ = on_powers_of_two()
    exact = freeze_exact(model)
    for name, layer in exact.layers.items():
        unit = bias_unit(layer)
        assert torch.equal(layer.bias.double() % unit, torch.zeros_like(layer.bias.double()))
        assert bool(((layer.bias - model.layers[name].bias).abs() <= unit / 2).all())
        assert not torch.equal(layer.bias, model.layers[name].bias)
        assert torch.equal(layer.codes, model.layers[name].codes)
        assert torch.equal(layer.scale, model.layers[name].scale)
    assert model.exact is None
    assert exact.exact is not None
    assert exact.metadata["method"] == "a test"
    assert exact.exact.coarsened_channels == 0
    assert set(exact.exact.bits) >= set(exact.layers)
    assert max(exact.exact.bits.values()) < 24


def test_float32_and_float64_agree_on_every_bit():
    images = torch.from_numpy(stress_images(12)).float()
    model, _ = on_powers_of_two()
    exact = freeze_exact(model)
    assert torch.equal(exact(images).double(), exact.double()(images.double()))
    # The test would see a model that rounds: this one does before its biases are rounded.
    assert not torch.equal(model(images).double(), model.double()(images.double()))


def test_sums_that_are_too_long_are_refused_without_weights_and_shortened_with_them():
    # Input steps of 2^-8 in one layer make the residual stream's unit 64 times finer than the others need.
    model, weights = on_powers_of_two()
    model.layers["body.0.body.2"].grid = Grid(2.0**-8, 128, 8)
    with pytest.raises(InputError, match=r"give body\.0\.body\.2 coarser weight scales or fewer bits"):
        freeze_exact(model)
    exact = freeze_exact(model, weights)
    prove(integer_program(exact))
    assert exact.exact.coarsened_channels > 0
    changed = [name for name, layer in exact.layers.items() if not torch.equal(layer.scale, model.layers[name].scale)]
    assert changed == ["body.0.body.2"]
    layer = exact.layers["body.0.body.2"]
    moved = (layer.weight - weights["body.0.body.2"]).abs()
    assert bool((moved <= layer.scale.reshape(-1, 1, 1, 1) / 2 * 1.001).all())


def test_a_channel_is_refused_rather_than_emptied():
    model, weights = on_powers_of_two()
    model.layers["body.0.body.2"].grid = Grid(2.0**-16, 128, 8)
    with pytest.raises(
        InputError, match=r"body\.0\.body\.2 cannot be exact: .* leave its output channel \d nothing but zeros"
    ):
        freeze_exact(model, weights)


def test_channels_that_are_zero_already_may_stay():
    model, weights = on_powers_of_two()
    layer = model.layers["body.0.body.2"]
    layer.grid = Grid(2.0**-8, 128, 8)
    layer.codes[3], weights["body.0.body.2"][3] = 0, 0.0
    exact = freeze_exact(model, weights)
    assert float(exact.layers["body.0.body.2"].scale[3]) > float(layer.scale[3])


def test_one_scale_per_layer_is_doubled_as_often_as_its_longest_channel_needs():
    model, weights = on_powers_of_two()
    layer = model.layers["body.0.body.2"]
    layer.grid = Grid(2.0**-8, 128, 8)
    layer.scale = layer.scale.max().reshape(1)
    exact = freeze_exact(model, weights).layers["body.0.body.2"]
    assert exact.scale.shape == (1,)
    assert float(exact.scale) == 16 * float(layer.scale)
    assert int(exact.codes.abs().max()) <= 127
    limit = exact.scale.reshape(-1, 1, 1, 1) / 2 * 1.001
    assert bool(((exact.weight - weights["body.0.body.2"]).abs() <= limit).all())
    # Half of it would not have been enough.
    layer.scale = exact.scale / 2
    with pytest.raises(InputError, match="float32 holds 2"):
        freeze_exact(model)


def test_freezing_twice_changes_nothing():
    model = calibrated_exact("srresnet", 4)
    again = freeze_exact(model)
    for name, layer in again.layers.items():
        assert torch.equal(layer.codes, model.layers[name].codes)
        assert torch.equal(layer.scale, model.layers[name].scale)
    assert again.exact.bits == model.exact.bits
