"""Conflict ratios and ranges, as logs tell them."""

import pytest
import torch

from training.distributed import World
from training.loop.diagnostics import conflicts, logged, ranges
from training.methods.base import Gradients, Step, gradients


def result_of(reconstruction, auxiliary, loss=None):
    as_tensors = [{key: torch.tensor(value) for key, value in part.items()} for part in (reconstruction, auxiliary)]
    return Gradients(torch.tensor(1.0), as_tensors[0], loss, as_tensors[1], {})


def test_conflicts_by_hand():
    """a: cosine of (1, 2) and (-1, 1) is positive with one opposed scalar; b: opposed; c: not shared."""
    result = result_of({"a": [1.0, 2.0], "b": [1.0], "c": [1.0]}, {"a": [-1.0, 1.0], "b": [-3.0], "d": [1.0]})
    assert conflicts(result) == {"conflict_tensors": 0.5, "conflict_scalars": pytest.approx(2 / 3)}


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
