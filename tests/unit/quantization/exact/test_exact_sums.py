"""Scales with short mantissas: what they are rounded to, when they suffice, and that every runtime then agrees."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odm_deploy.grid import Grid
from odm_deploy.proof.layer_parity import OUTPUT
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.exact.sums import (
    LARGEST_SHRINKAGE,
    round_significand,
    significant_bits,
    sum_bound_bits,
    sums_are_exact,
    with_exact_sums,
)
from odm_deploy.quantization.fake_quant import dequantize_weight, grid_codes
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import tapped
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.power_of_two import FLOAT32_BITS
from odm_deploy.quantization.weights import WeightCodes, quantize_weight
from tests.factories import OPENERS, lowered, random_images, tiny_network, weight_codes

BITS = range(2, 7)
DIVIDING_RUNTIMES = ["onnx_reference", "onnxruntime", "onnxruntime_unfused"]
"""They divide by the scale, so ties fall where the reference's do; OpenVINO breaks some of them differently."""


@functools.cache
def calibrated(bits, *, exact_sums=True, free=False):
    """A tiny EDSR with `bits`-bit body, calibrated on photograph-like images. Cached: treat it as read-only."""
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    policy = QuantizationPolicy(LayerBits(bits, bits), free=free)
    model, _ = calibrate(tiny_network(), images, policy, CalibrationSettings(exact_sums=exact_sums))
    return model


def noise(height=40, width=48, seed=0):
    """Integers in 0..255 without any structure: they reach more sums than photographs do."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (1, 3, height, width)).astype(np.float32)


def codes_of(model, image):
    """Codes of every quantized layer, nothing forced, and the output."""
    found = {}

    def watch(name):
        def tap(x):
            found[name] = grid_codes(x, model.layers[name].grid)
            return x

        return tap

    with tapped(model, watch):
        return found, model(image)


@pytest.mark.parametrize(
    ("value", "bits", "expected"),
    [
        (1.0, 1, 1.0),
        # Nearest, while that cuts little off a range ..
        (1.06, 1, 1.0),
        (1.12, 3, 1.25),
        (1.74, 3, 1.75),
        (1.30, 4, 1.25),
        (0.7, 4, 0.6875),
        (1.99, 2, 2.0),
        # .. and up where it would cut more than 6 %.
        (1.12, 1, 2.0),
        (1.49, 1, 2.0),
        (1.12, 2, 1.5),
        (1.40, 3, 1.5),
    ],
)
def test_significands_are_rounded_to_the_nearest_or_up(value, bits, expected):
    assert float(round_significand(torch.tensor(value), bits)) == expected


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-20, 2.0**20, width=32), st.integers(1, 8))
def test_rounded_scales_are_short_stay_put_and_shrink_little(value, bits):
    rounded = round_significand(torch.tensor([value]), bits)
    assert significant_bits(rounded) <= bits
    assert torch.equal(round_significand(rounded, bits), rounded)
    ratio = float(rounded) / value
    assert 1 - LARGEST_SHRINKAGE - 1e-6 <= ratio <= 2
    # Half a unit of `bits` bits, where that is less than the limit: then nothing is ever rounded up.
    if bits >= 5:
        assert abs(ratio - 1) <= 2.0**-bits


@pytest.mark.parametrize("exponent", [-20, -1, 0, 7])
def test_powers_of_two_are_left_alone(exponent):
    power = torch.tensor([2.0**exponent])
    assert significant_bits(power) == 1
    assert all(torch.equal(round_significand(power, bits), power) for bits in range(1, 8))


def test_significant_bits_are_those_of_the_longest():
    assert significant_bits(torch.tensor([0.5, 3.0, 8.0])) == 2
    assert significant_bits(torch.tensor([0.5, 0.625, 3.0])) == 3
    assert significant_bits(torch.tensor([1 + 2.0**-23, 1.0])) == FLOAT32_BITS
    assert significant_bits(torch.tensor([0.1])) == FLOAT32_BITS


def layer_of(codes, *, zero_point=5, bits=4, scale=0.5, bias=None):
    weight = WeightCodes(torch.tensor(codes, dtype=torch.int8), torch.tensor([0.25]), 8, first=-128)
    return FrozenLayer(weight, Grid(scale, zero_point, bits), None if bias is None else torch.tensor(bias))


def test_bound_is_the_largest_sum_of_any_channel():
    # Codes minus zero point reach from -5 to 10; the second channel has the larger sum of |weight codes|.
    assert 2 ** sum_bound_bits(layer_of([[1, -2], [6, -7]])) == pytest.approx(13 * 10)
    assert 2 ** sum_bound_bits(layer_of([[6, -7]], zero_point=12)) == pytest.approx(13 * 12)
    # A bias of -3.0 is 24 products of 0.5 * 0.25.
    assert 2 ** sum_bound_bits(layer_of([[6, -7], [1, 1]], bias=[-3.0, 0.0])) == pytest.approx(13 * 10 + 24)
    assert sum_bound_bits(layer_of([[0, 0]])) == 0


@pytest.mark.parametrize("bits", BITS)
def test_calibration_promises_exact_sums_and_keeps_it(bits):
    model = calibrated(bits)
    assert model.metadata["exact_sums"] is True
    assert sums_are_exact(model)
    for layer in model.layers.values():
        products = layer.bias.double() / (layer.scale.double() * layer.grid.scale)
        assert torch.equal(products, products.round())
        x = 2 * layer.grid.upper * torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(bits))
        with torch.no_grad():
            single, double = layer(x), copy.deepcopy(layer).double()(x.double())
        assert torch.equal(single.double(), double)


@pytest.mark.parametrize("bits", BITS)
def test_order_of_the_input_channels_does_not_matter(bits):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(bits))
    x = torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(3))

    def both_orders(layer):
        values = 2 * layer.grid.upper * x
        permuted = copy.deepcopy(layer)
        permuted.codes = layer.codes[:, order].contiguous()
        permuted.gain = None if layer.gain is None else layer.gain[order]
        with torch.no_grad():
            return layer(values), permuted(values[:, order].contiguous())

    assert all(torch.equal(*both_orders(layer)) for layer in calibrated(bits).layers.values())
    # Ordinary scales round: the test would see it if these did.
    ordinary = calibrated(bits, exact_sums=False).layers.values()
    assert not all(torch.equal(*both_orders(layer)) for layer in ordinary)


@pytest.mark.parametrize("bits", BITS)
def test_float32_and_float64_agree_in_every_code(bits):
    model = calibrated(bits)
    image = torch.from_numpy(noise())
    single, output = codes_of(model, image)
    double, output64 = codes_of(model.double(), image.double())
    assert {name: int((codes != double[name]).sum()) for name, codes in single.items()} == dict.fromkeys(single, 0)
    # The tail stays float: its sums round, but start from the same values.
    assert float((output - output64).abs().max()) < 2e-4


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_runtimes_that_divide_compute_the_references_codes(bits):
    model, image = calibrated(bits), noise(24, 32)
    expected = model(torch.from_numpy(image)).numpy()
    proto = lowered(model)
    for name in DIVIDING_RUNTIMES:
        layers = compare_layers(model, proto, OPENERS[name], [image])
        assert {layer.name: layer.flips for layer in layers if layer.name != OUTPUT} == dict.fromkeys(model.layers, 0)
        with OPENERS[name](proto.SerializeToString()) as runtime:
            # One flipped code anywhere in the body would move the output by far more.
            assert np.abs(runtime.upscale(image) - expected).max() < 2e-4, name


@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_eight_bits_shifted_to_signed_codes_break_ties_alike(features, name):
    """Half to even is another code behind a shift by an odd number of them, also where scales are no powers of two."""
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    policy = QuantizationPolicy(*[LayerBits(8, 8)] * 4)
    # Gains would leave few ties to break.
    model, _ = calibrate(tiny_network(features=features), images, policy, CalibrationSettings(equalize=False))
    assert model.metadata["exact_sums"] is True
    grids = [layer.grid for layer in model.layers.values()]
    assert all((128 - grid.zero_point) % 2 == 0 for grid in grids)
    assert any(grid.zero_point not in (0, 128) and not grid.is_power_of_two for grid in grids)
    layers = compare_layers(model, lowered(model), OPENERS[name], [noise(24, 32)])
    assert {layer.name: layer.flips for layer in layers} == dict.fromkeys([*model.layers, OUTPUT], 0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_openvino_differs_in_nothing_but_exact_ties(bits):
    model, image = calibrated(bits), noise(24, 32)
    ties = {}

    def watch(name):
        def tap(x):
            halves = x.double() / model.layers[name].grid.scale - 0.5
            ties[name] = int((halves == halves.round()).sum())
            return x

        return tap

    with tapped(model, watch):
        model(torch.from_numpy(image))
    layers = compare_layers(model, lowered(model), OPENERS["openvino"], [image])
    for layer in layers:
        if layer.name != OUTPUT:
            assert layer.flips <= ties[layer.name], layer.name
            assert layer.max_step <= 1


def test_ordinary_scales_promise_nothing():
    model = calibrated(4, exact_sums=False)
    assert model.metadata["exact_sums"] is False
    assert not sums_are_exact(model)


def frozen(weight, *, bits, grid=None, kind="per_channel"):
    return FrozenLayer(weight_codes(weight, kind, bits), grid or Grid.from_range(-1.0, 1.0, bits), None)


def test_wide_8_bit_layers_have_no_scales_that_short():
    # 2304 weights of up to 127 times inputs of up to 255: two bits are left, at most, and both scales need one.
    weight = torch.full((4, 256, 3, 3), 0.1)
    layer = frozen(weight, bits=8)
    assert sum_bound_bits(layer) > FLOAT32_BITS - 2
    assert with_exact_sums({"wide": layer}, {"wide": weight}) is None
    # Powers of two would do here, but cost more at this width than runtimes that agree are worth.
    assert with_exact_sums({"narrow": frozen(weight[:, :8], bits=8)}, {"narrow": weight[:, :8]}) is None
    single = frozen(weight[:, :1], bits=8)
    assert with_exact_sums({"single": single}, {"single": weight[:, :1]}) is not None
    # All or none.
    both = {"wide": layer, "single": single}
    assert with_exact_sums(both, {"wide": weight, "single": weight[:, :1]}) is None


@pytest.mark.parametrize("kind", ["free grid", "mid-rise weights"])
def test_levels_that_cannot_be_rounded_are_refused(kind):
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    free = kind == "free grid"
    layer = frozen(
        weight,
        bits=4,
        grid=Grid.free(-0.7, 1.0, 4) if free else None,
        kind="per_channel" if free else "mid_rise",
    )
    assert with_exact_sums({"a": layer}, {"a": weight}) is None


def test_without_short_enough_scales_a_model_keeps_the_ordinary_ones():
    torch.manual_seed(1)
    network = tiny_network(blocks=1, features=64)
    images, policy = [torch.from_numpy(random_images(16, 16))], QuantizationPolicy(LayerBits(8, 8))
    settings = CalibrationSettings(equalize=False, adaptive_rounding=False)
    model, _ = calibrate(network, images, policy, settings)
    assert model.metadata["exact_sums"] is False
    assert not sums_are_exact(model)
    for name, layer in model.layers.items():
        expected = quantize_weight(network.get_submodule(name).weight, 8, search_mse=True)
        assert torch.equal(layer.scale, expected.scale)
        assert torch.equal(layer.codes, expected.codes)


def test_free_grids_are_calibrated_as_before():
    model = calibrated(4, free=True)
    assert all(layer.grid.is_free for layer in model.layers.values())
    assert model.metadata["exact_sums"] is False
    assert not sums_are_exact(model)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_chosen_anew_for_the_rounded_scales(bits):
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(bits)) * 0.1
    layer = FrozenLayer(quantize_weight(weight, bits, search_mse=True), Grid.from_range(-0.8, 2.9, bits), torch.ones(6))
    (exact,) = with_exact_sums({"a": layer}, {"a": weight}).values()
    scale = exact.weight.scale.reshape(-1, 1, 1, 1)
    limit = 2 ** (bits - 1) - 1
    inside = (weight / scale).abs() < limit
    assert (
        float(((dequantize_weight(exact.weight.codes, exact.weight.scale) - weight).abs() / scale)[inside].max())
        <= 0.5 + 1e-5
    )
    assert int(exact.weight.codes.abs().max()) <= limit
    assert (exact.weight.bits, exact.grid.bits) == (bits, bits)
    # The range stays where it was, give or take the scale's rounding and the snapped zero.
    assert abs(exact.grid.lower - layer.grid.lower) <= exact.grid.scale
    assert exact.grid.scale >= (1 - LARGEST_SHRINKAGE) * layer.grid.scale
    unit = exact.weight.scale * exact.grid.scale
    assert bool(((exact.bias - 1.0).abs() <= unit / 2).all())
