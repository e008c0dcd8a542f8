"""The exact profile while training: powers of two in the forward pass, and a frozen model with the same bits."""

import math

import pytest
import torch

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import Region
from odm_deploy.networks.swinir import SwinIR, SwinirConfig
from odm_deploy.quantization.policy import LayerBits, quantizable_layers
from training.loop.preparation import build_model
from training.methods.registry import build_method
from training.model import TrainableModel
from training.recipe_files import load_recipe

OPTIONS = {
    "name": "odm_v2",
    "power_of_two": True,
    "per_channel": True,
    "range_init": "mse",
    "gamma_init": "mse",
    "relative_ranges": True,
}


@pytest.fixture
def images(low) -> torch.Tensor:
    """`low` as the whole numbers that 8-bit images are."""
    return low.round()


@pytest.fixture
def exact(small_network, images):
    """exact(bits) -> (method, calibrated TrainableModel of the whole small network)."""

    def make(bits: int, **options):
        method = build_method({**OPTIONS, **options})
        widths = {
            name: LayerBits(bits, bits) if small_network.region_of(name) is Region.BODY else LayerBits(8, 8)
            for name in quantizable_layers(small_network)
        }
        model = TrainableModel.attach(small_network, widths, method, exact=True)
        model.calibrate(iter([images]))
        method.initialize(model)
        model.project()
        return method, model

    return make


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("weight_levels", ["mid_rise", "mid_tread"])
def test_freezing_changes_no_bit_and_proves_every_sum(exact, nudge, images, bits, weight_levels):
    _, model = exact(bits, weight_levels=weight_levels)
    nudge(model)
    model.network.eval()
    with torch.no_grad():
        trained = model(images)
    frozen = model.freeze({})
    assert frozen.exact is not None
    assert torch.equal(frozen(images), trained)
    assert torch.equal(frozen.double()(images.double()), trained.double())
    for layer in frozen.layers.values():
        assert layer.grid.is_power_of_two
        assert (torch.frexp(layer.scale).mantissa == 0.5).all()


def test_the_head_reads_images_as_they_are(exact, small_network, images):
    _, model = exact(4)
    head = model.layers["head.0"].activation
    shifted = images - head.grid().zero_point
    assert torch.equal(head(shifted), shifted)


def test_exponents_are_learned(exact, images):
    """Ranges pushed far enough change the scale by whole octaves."""
    _, model = exact(4)
    quantizer = model.layers["body.0.body.0"].activation
    before = quantizer.grid().scale
    with torch.no_grad():
        quantizer.upper.mul_(4)
        quantizer.lower.mul_(4)
    assert quantizer.grid().scale == 4 * before


def test_only_what_lies_in_quantized_layers_is_trained(exact):
    _, model = exact(4)
    assert all(any(name.startswith(layer) for layer in model.layers) for name in model.parameters())
    assert "add_mean.bias" not in model.parameters()


def test_gradients_reach_every_trained_parameter(exact, images):
    _, model = exact(4)
    model(images).square().mean().backward()
    unreached = [name for name, parameter in model.parameters().items() if parameter.grad is None]
    assert unreached == []


def test_other_scales_are_refused(small_network):
    recipe = load_recipe("training/recipes/exact/edsr_x4_odm_w4a4_exact.toml", ["method.power_of_two=false"])
    method = build_method(recipe.method)
    with pytest.raises(UsageError, match="power_of_two = true"):
        build_model(recipe, method, small_network)


def test_a_layer_left_float_is_refused_when_the_recipe_is_read():
    path = "training/recipes/exact/edsr_x4_odm_w4a4_exact.toml"
    for override in ('quantization.overrides={"tail.1" = "float"}', "quantization.overrides={'head.0' = 'float'}"):
        with pytest.raises(UsageError, match=r"a float layer in profile exact: (tail\.1|head\.0) left float"):
            load_recipe(path, [override])
    # Regions of which nothing is said get 8 bits; with another profile a float layer is nothing special.
    assert load_recipe(path, []).quantization.policy().tail == LayerBits(8, 8)
    load_recipe(path, ["quantization.profile=paper", 'quantization.overrides={"tail.1" = "float"}'])


def test_a_network_that_rounds_is_refused():
    swinir = SwinIR(SwinirConfig(scale=2, channels=8, groups=1, depth=1, heads=2, window=2, hidden=8))
    with pytest.raises(InputError, match="cannot be exact"):
        TrainableModel.attach(swinir, {"conv_first": LayerBits(8, 8)}, build_method(OPTIONS), exact=True)


def test_annealed_scales_go_from_ordinary_ones_to_powers_of_two(exact, images):
    method, model = exact(2, anneal_exponents=10)
    layer = model.layers["body.0.body.0"]

    def distinct_steps(iteration: int) -> tuple[float, float]:
        """The distances of neighbouring levels of input and first weights."""
        method.begin_iteration(model, iteration)
        with torch.no_grad():
            levels, weights = layer.activation(torch.linspace(-500, 500, 9999)), layer.weight_quantizer(layer.weight)
        steps = [part.unique().diff().min().item() for part in (levels, weights[0])]
        return steps[0], steps[1]

    lower, upper = (bound.item() for bound in layer.activation.range)
    first, middle, last = distinct_steps(0), distinct_steps(5), distinct_steps(10)
    assert first[0] == pytest.approx((upper - lower) / 3, rel=1e-5)
    for start, half, end in zip(first, middle, last, strict=True):
        assert math.log2(end) == pytest.approx(round(math.log2(end)), abs=1e-5)
        assert half == pytest.approx(math.sqrt(start * end), rel=1e-4)
        assert start != pytest.approx(end, rel=1e-3)
    assert distinct_steps(99) == last


@pytest.mark.parametrize("iteration", [0, 5, 10])
def test_what_is_validated_and_frozen_has_powers_of_two_already(exact, nudge, images, iteration):
    method, model = exact(2, anneal_exponents=10)
    nudge(model)
    method.begin_iteration(model, iteration)
    model.network.eval()
    with torch.no_grad():
        validated = model(images)
    assert torch.equal(model.freeze({})(images), validated)


@pytest.mark.parametrize("options", [{"anneal_exponents": -1}, {"anneal_exponents": 5, "power_of_two": False}])
def test_annealing_of_nothing_is_refused(options):
    with pytest.raises(UsageError, match="anneal_exponents"):
        build_method({**OPTIONS, **options})
