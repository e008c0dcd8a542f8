"""Conflict ratios and ranges, as logs tell them."""

import numpy as np
import pytest
import torch

from odm_deploy.imaging.pairs import ImagePair
from training.distributed import World
from training.loop.diagnostics import conflicts, logged, quantization_errors, ranges, validate, weight_bounds
from training.methods.base import Gradients, Step, gradients


def result_of(reconstruction, auxiliary, loss=None):
    as_tensors = [{key: torch.tensor(value) for key, value in part.items()} for part in (reconstruction, auxiliary)]
    return Gradients(torch.tensor(1.0), as_tensors[0], loss, as_tensors[1], {})


def test_conflicts_by_hand():
    """a: cosine of (1, 2) and (-1, 1) is positive with one opposed scalar; b: opposed; c: not shared."""
    result = result_of({"a": [1.0, 2.0], "b": [1.0], "c": [1.0]}, {"a": [-1.0, 1.0], "b": [-3.0], "d": [1.0]})
    expected = {"conflict_tensors": 0.5, "conflict_scalars": 2 / 3, "cosine": (10**-0.5 - 1) / 2}
    assert conflicts(result) == pytest.approx(expected, rel=1e-5)


def test_nothing_is_logged_without_an_auxiliary_loss():
    assert conflicts(result_of({"a": [1.0]}, {})) == {}
    assert logged("mismatch", result_of({"a": [1.0]}, {})) == {}


def test_ranges_are_the_first_and_last_level(attach):
    _, model = attach("odm_v2", 4)
    for name, (first, last) in ranges(model).items():
        grid = model.layers[name].activation.grid()
        assert first == pytest.approx(-grid.zero_point * grid.scale, rel=1e-6)
        assert last - first == pytest.approx(15 * grid.scale, rel=1e-5)
    assert set(ranges(model)) == set(model.layers)


def test_quantization_errors_are_those_of_each_layers_input(attach, low):
    _, model = attach("odm_v2", 2)
    image = low[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    pair = ImagePair("noise", image, image.repeat(2, 0).repeat(2, 1))
    errors = quantization_errors(model, model.network.state_dict(), pair, "cpu")
    model.network.eval()
    with torch.no_grad(), model.recording():
        model(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        expected = [(x - levels).square().mean().sqrt().item() for x, levels in model.records()]
    assert list(errors.values()) == pytest.approx(expected, rel=1e-4)


def test_weight_bounds_are_relative_to_the_largest_weight(attach):
    assert weight_bounds(attach("odm_v2", 2, weight_percentile=100.0)[1]) == dict.fromkeys(
        (f"body.{block}.body.{conv}" for block in (0, 1) for conv in (0, 2)), pytest.approx(1.0)
    )
    assert all(0.5 < bound < 1.0 for bound in weight_bounds(attach("odm_v2", 2)[1]).values())
    assert weight_bounds(attach("lsq", 2)[1]) == {}


def test_validation_by_div2ks_protocol_counts_all_colours_within_a_wider_border(attach):
    _, model = attach("odm_v2", 8)
    random = np.random.default_rng(0)
    low = random.integers(0, 256, (20, 22, 3), np.uint8)
    high = random.integers(0, 256, (40, 44, 3), np.uint8)
    pairs, state = [ImagePair("noise", low, high)], model.network.state_dict()
    model.network.eval()
    with torch.no_grad():
        output = model(torch.from_numpy(low).permute(2, 0, 1)[None].float())
    answer = output[0].permute(1, 2, 0).round().clamp(0, 255).double().numpy()
    error = np.mean((answer - high)[8:-8, 8:-8] ** 2)
    assert validate(model, state, pairs, "cpu", "rgb") == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert validate(model, state, pairs, "cpu") != pytest.approx(validate(model, state, pairs, "cpu", "rgb"), abs=0.01)


def test_layers_without_a_static_grid_are_left_out(attach):
    _, model = attach("daq", 4)
    assert ranges(model) == {}


def test_the_mismatch_is_taken_every_kth_step_and_k_times_as_strongly(attach, low):
    plain, model = attach("odm_v2", 3)
    sparse, _ = attach("odm_v2", 3, mismatch_every=4)
    steps = []
    for method, iteration in ((plain, 0), (sparse, 3), (sparse, 4), (sparse, 6), (sparse, 7)):
        with model.recording():
            output = model(low)
            target = torch.zeros_like(output)
            steps.append(gradients(method, Step(model, low, target, output, iteration, World())))
    every, first, second, fourth, fifth = steps
    assert second.auxiliary == fourth.auxiliary == {}
    assert second.auxiliary_loss is None
    key = "body.0.body.0.weight"
    push, pull = (step.combined[key] - step.reconstruction[key] for step in (every, first))
    assert torch.allclose(pull, 4 * push, rtol=1e-3, atol=1e-9)
    assert torch.equal(first.combined[key], fifth.combined[key])
    assert torch.equal(second.combined[key], second.reconstruction[key])
