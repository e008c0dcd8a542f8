"""Mismatch, clipping and weight errors are what the definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from odm_deploy.grid import Grid
from odm_deploy.report.layer_statistics import LayerStatistics, measure_layers, weight_errors
from tests.factories import random_images, tiny_model


def statistics(values, grid):
    found = LayerStatistics("layer", grid, 4)
    for value in values:
        found.add(torch.tensor(value))
    return found


def test_values_on_the_grid_have_no_mismatch():
    found = statistics([[0.0, 1.0], [2.0, 3.0]], Grid.from_range(0.0, 3.0, 2))
    assert (found.mismatch, found.clipped_share, found.values) == (0.0, 0.0, 4)


def test_mismatch_and_clipping_add_up_over_images():
    found = statistics([[1.0, 2.25], [5.0, 3.4]], Grid.from_range(0.0, 3.0, 2))
    error = [0.0, 0.25, 2.0, 0.4]
    assert found.mismatch == pytest.approx(np.linalg.norm(error) / np.linalg.norm([1.0, 2.25, 5.0, 3.4]))
    # 3.4 rounds to the last level, as any value nearer than half a step does; 5 is cut off.
    assert found.clipped_share == 0.25


def test_an_input_of_zeros_has_a_mismatch_only_where_zero_is_no_level():
    assert statistics([[0.0, 0.0]], Grid.from_range(-1.0, 1.0, 2)).mismatch == 0.0
    assert statistics([[0.0, 0.0]], Grid.free(-1.0, 1.0, 2)).mismatch == math.inf


def test_every_layer_is_measured_on_what_arrives_there():
    model = tiny_model(4)
    images = [random_images(12, 16, seed=seed) for seed in range(2)]
    found = measure_layers(model, images)
    assert [layer.name for layer in found] == list(model.layers)
    for layer in found:
        centres, counts = layer.histogram.occupied()
        assert counts.sum() == layer.values == 2 * 8 * 12 * 16
        assert 0 < layer.mismatch < 1
        # Behind a ReLU nothing is negative.
        assert bool(centres[0] < 0) == (not layer.name.endswith(".body.2"))
    assert all(layer.tap is None for layer in model.layers.values())


def test_weight_errors_are_those_of_the_float_weights_that_are_known():
    model = tiny_model(4)
    first, second, *_ = model.layers
    real = model.layers[first].weight
    state = {f"{first}.weight": 2 * real, f"{second}.weight": torch.zeros(1, 1, 1, 1)}
    assert weight_errors(model, state) == {first: pytest.approx(0.5)}
