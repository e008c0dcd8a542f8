"""Fine-tuning starts at the calibrated model, comes nearer to the float network, and ends in the same kind of model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization.exact.freeze import bias_unit
from odm_deploy.quantization.exact.sums import sums_are_exact
from odm_deploy.quantization.layers import quantized_layer
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.power_of_two import round_to_multiples
from odm_deploy.tuning.examples import batch_size
from odm_deploy.tuning.finetuning import Budget, fine_tune
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.learnable_layers import LearnableLayer
from tests.factories import GRID_KINDS, WEIGHT_KINDS, random_images, tiny_model, tiny_network

NEAREST = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)
"""Leaves something to learn: what is fitted to each layer's output starts where 60 steps end."""


def images(count=3, size=56):
    return [torch.from_numpy(random_images(size, size, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize("grid", GRID_KINDS)
@pytest.mark.parametrize("weight", WEIGHT_KINDS)
def test_a_learnable_layer_starts_as_the_frozen_one_and_freezes_to_it(grid, weight):
    model = tiny_model(4, grid, weight)
    name, frozen = next(iter(model.layers.items()))
    plain = tiny_network().get_submodule(name)
    layer = LearnableLayer(frozen, plain.weight)
    x = torch.randn(2, 8, 9, 11, generator=torch.Generator().manual_seed(1)) * 20
    torch.testing.assert_close(layer(x), frozen(x), rtol=1e-5, atol=1e-5)
    again = quantized_layer(name, plain, layer.freeze())
    assert torch.equal(again.codes, frozen.codes)
    assert again.grid.zero_point == frozen.grid.zero_point
    assert again.grid.scale == pytest.approx(frozen.grid.scale, rel=1e-6)
    # The weights are the float ones, wherever these are nearest to their codes.
    learned, given = layer.weight.detach(), plain.weight.detach()
    inside = (given - frozen.weight).abs() < 0.49 * layer.frozen.weight_codes.step * frozen.scale.reshape(-1, 1, 1, 1)
    assert torch.equal(learned[inside], given[inside])
    assert inside.float().mean() > 0.8


def test_what_calibration_fitted_is_not_a_step_from_being_undone():
    """A code that is not the nearest one was chosen for the output; at the cell's edge noise would take it back."""
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(4, 4)), CalibrationSettings(equalize=False))
    fitted = 0
    for name, frozen in model.layers.items():
        given = network.get_submodule(name).get_parameter("weight").detach()
        layer = LearnableLayer(frozen, given)
        codes = frozen.weight_codes
        scale = codes.scale.reshape(-1, 1, 1, 1)
        away = (layer.weight.detach() - codes.codes * scale).abs() / scale
        other = (given - codes.codes * scale).abs() > 0.5 * scale
        fitted += int(other.sum())
        assert float(away[other].max()) < 0.26
    assert fitted > 100


def test_gradients_reach_everything_that_learns():
    name, frozen = next(iter(tiny_model(4).layers.items()))
    layer = LearnableLayer(frozen, tiny_network().get_submodule(name).get_parameter("weight"))
    layer(torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(2)) * 30).square().sum().backward()
    for key, parameter in layer.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().max()) > 0, key


@pytest.mark.parametrize("exact", [False, True])
def test_the_output_comes_nearer_to_float(exact, tmp_path):
    network = tiny_network()
    widths = LayerBits(3, 3)
    policy = QuantizationPolicy.exact(widths) if exact else QuantizationPolicy(widths)
    model, _ = calibrate(network, images(), policy, NEAREST)
    held = HeldBack(network, [Sample(each) for each in images(5)[3:]])
    before = held.measure(model)
    tuned = fine_tune(network, model, images(), Budget(steps=60))
    after = held.measure(tuned.model)
    assert after.psnr_db > before.psnr_db + 0.5
    assert tuned.last_loss < tuned.first_loss
    assert (tuned.steps, tuned.interrupted) == (60, False)
    # The same kind of model, and nothing but the quantized layers is another.
    assert (tuned.model.exact is not None) == exact
    assert tuned.model.metadata["exact_sums"] == model.metadata["exact_sums"]
    assert sums_are_exact(tuned.model) or not model.metadata["exact_sums"]
    assert list(tuned.model.layers) == list(model.layers)
    for name, value in tuned.model.network.state_dict().items():
        if not name.startswith(tuple(model.layers)):
            assert torch.equal(value, model.network.state_dict()[name]), name
    save_model(tuned.model, tmp_path / "model.pt")
    assert held.measure(load_model(tmp_path / "model.pt")) == after


def test_fine_codes_are_not_jumped_over():
    """At 8 bits calibration leaves next to nothing to learn: steps as large as those of 3 bits would be noise."""
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(8, 8)))
    held = HeldBack(network, [Sample(each) for each in images(5)[3:]])
    tuned = fine_tune(network, model, images(), Budget(steps=20))
    assert held.measure(tuned.model).psnr_db > held.measure(model).psnr_db - 0.5


def test_equal_seeds_give_equal_models_and_the_calibrated_one_stays_as_it_is():
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(4, 4)))
    image = images(1)[0]
    before = model(image)
    first, second = (fine_tune(network, model, images(), Budget(steps=5)).model(image) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(model(image), before)
    assert not torch.equal(first, before)


def test_an_interruption_keeps_what_was_learned():
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(3, 3)), NEAREST)
    said: list[str] = []

    def stopping(items, total, stage=""):
        for number in items:
            yield number
            if number == 30:
                raise KeyboardInterrupt

    tuned = fine_tune(network, model, images(), Budget(steps=100), track=stopping, say=said.append)
    assert tuned.interrupted
    assert tuned.steps == 30
    assert said == ["fine-tuning ended after 30 steps; keeping what was learned"]
    held = HeldBack(network, [Sample(images(4)[3])])
    assert held.measure(tuned.model).psnr_db > held.measure(model).psnr_db


class OneImage(nn.Module):
    """Takes one image at a time."""

    def __init__(self):
        super().__init__()
        self.first, self.body, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return x.view(1, 3, *x.shape[2:]) + self.last(self.body(self.first(x)).relu())


def test_networks_that_take_one_image_at_a_time_learn_from_one():
    torch.manual_seed(0)
    network = foreign_network(OneImage())
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(3, 3)), NEAREST)
    tuned = fine_tune(network, model, images(), Budget(steps=20))
    assert tuned.steps == 20
    assert tuned.last_loss < tuned.first_loss
    assert batch_size(network) == 1 < batch_size(foreign_network(nn.Sequential(OneImage().first, OneImage().last)))


def test_what_cannot_be_done_is_refused():
    network = tiny_network()
    model, _ = calibrate(network, images(), QuantizationPolicy(LayerBits(4, 4)))
    for minutes in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"cannot fine-tune for {minutes} minutes"):
            Budget(minutes=minutes)
    with pytest.raises(InputError, match="there is no image"):
        fine_tune(network, model, [], Budget(steps=1))
    with pytest.raises(InputError, match="fine-tuning diverged"):
        fine_tune(network, model, [torch.full((1, 3, 48, 48), math.nan)], Budget(steps=1))


def test_signals_stay_on_their_grids_while_what_is_around_them_learns():
    network = tiny_network()
    policy = QuantizationPolicy.parse("integer", "4")
    model, _ = calibrate(network, images(), policy, NEAREST)
    held_back = HeldBack(network, (Sample(image, None) for image in images(2, 40)))
    tuned = fine_tune(network, model, images(), Budget(steps=40)).model
    assert {name: signal.grid for name, signal in tuned.signals.items()} == {
        name: signal.grid for name, signal in model.signals.items()
    }
    assert held_back.measure(tuned).psnr_db > held_back.measure(model).psnr_db
    # Runtimes that fuse a layer with the quantizer behind it round its bias so.
    for name, layer in tuned.layers.items():
        assert layer.bias is not None, name
        assert torch.equal(layer.bias, round_to_multiples(layer.bias, bias_unit(layer))), name
