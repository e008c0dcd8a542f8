"""One layer's flips: those that rounding explains, and those that it does not."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.proof.layer_parity import MAX_FLIP_STEPS, PIXELS, LayerParity


def test_rates_of_a_layer_without_codes_are_zero():
    assert LayerParity("a").flip_rate == LayerParity("a").floor_flip_rate == 0.0
    assert LayerParity("a", codes=8, flips=2, floor_flips=1).flip_rate == 0.25
    assert LayerParity("a", codes=8, flips=2, floor_flips=1).floor_flip_rate == 0.125


@pytest.mark.parametrize(
    ("codes", "flips", "max_step", "floor_flips", "clean"),
    [
        (10**6, 0, 0, 0, True),
        # 1e-4 of the codes are ties ..
        (10**6, 100, 1, 0, True),
        (10**6, 101, 1, 0, False),
        # .. or ten times what rounding flips in the reference itself, where values sit on ties.
        (10**6, 500, 1, 50, True),
        (10**6, 501, 1, 50, False),
        # A few flips prove nothing among a few codes,
        (300, 3, 1, 0, True),
        (300, 4, 1, 0, False),
        # but no tie moves a code by two.
        (10**6, 1, 2, 0, False),
        (0, 0, 0, 0, True),
    ],
)
def test_a_layer_is_clean_when_ties_explain_its_flips(codes, flips, max_step, floor_flips, clean):
    assert LayerParity("a", codes, flips, max_step, floor_flips).is_clean is clean


@pytest.mark.parametrize(("value", "code"), [(9.0, 4), (1.875, 4), (-9.0, -1), (-1.125, -1)])
def test_not_one_code_outside_of_the_grid_is_excused(value, code):
    grid, size = Grid(0.75, 1, 2), 10**6
    values = np.full(size, value, np.float32)
    expected = grid.quantize(values)
    found = expected.astype(np.int16)
    found[0] = code
    layer = LayerParity("saturated")
    layer.add(found, expected, expected, values, values, grid)
    assert (layer.flips, layer.tie_flips) == (1, 0)
    assert not layer.is_clean


def test_flips_on_ties_are_told_from_flips_off_them():
    grid, size = Grid(0.75, 1, 2), 100_000
    values = np.full(size, 0.375, np.float32)
    expected = np.ones(size, np.uint8)
    found = expected.copy()
    found[:5000] = 2
    layer = LayerParity("on a tie")
    layer.add(found, expected, expected, values, values, grid)
    assert (layer.flips, layer.tie_flips, layer.max_step, layer.furthest_steps) == (5000, 5000, 1, 0.0)
    assert layer.is_clean
    # The same codes for values that are nowhere near a tie, and the code on the wrong side of one.
    for wrong_values, wrong_code, steps in ((np.full(size, 0.3, np.float32), 2, 0.1), (values, 0, 1.0)):
        found[:5000] = wrong_code
        layer = LayerParity("off a tie")
        layer.add(found, expected, expected, wrong_values, wrong_values, grid)
        assert (layer.flips, layer.tie_flips) == (5000, 0)
        assert layer.furthest_steps == pytest.approx(steps, abs=1e-6)
        assert not layer.is_clean


def test_a_flip_far_from_any_tie_is_no_rounding_however_rare():
    assert LayerParity("a", codes=10**6, flips=1, max_step=1, furthest_steps=MAX_FLIP_STEPS).is_clean
    assert not LayerParity("a", codes=10**6, flips=1, max_step=1, furthest_steps=1.01 * MAX_FLIP_STEPS).is_clean


def test_a_flip_may_lie_as_far_from_a_tie_as_float32_and_float64_lie_apart():
    # An attention that multiplies large floats moves what is behind it by parts of a step between the two.
    grid, size = Grid(0.5, 0, 8), 100_000
    values = np.full(size, 20.2, np.float32)
    expected = grid.quantize(values)
    found = expected.copy()
    found[:5] += 1

    def judged(values, moved):
        layer = LayerParity("behind an attention")
        layer.add(found, expected, expected, values, values.astype(np.float64) + moved, grid)
        return layer

    assert judged(values, 0.01).furthest_steps == pytest.approx(0.1, abs=1e-5)
    assert judged(values, 0.01).is_clean
    assert not judged(values, 0.001).is_clean
    # What saturates moves no code, so it excuses none.
    saturated = values.copy()
    saturated[size // 2 :] = 500.0
    assert not judged(saturated, np.where(saturated > 200, 50.0, 0.0)).is_clean


def test_ties_excuse_no_flip_of_an_exact_model():
    assert not LayerParity("a", codes=10**6, flips=1, max_step=1, tie_flips=1, exact=True).is_clean


def test_codes_of_another_shape_are_refused():
    codes, values = np.zeros((1, 2, 3, 3), np.uint8), np.zeros((1, 2, 3, 3), np.float32)
    with pytest.raises(InputError, match=r"codes of conv cannot be compared.*\(1, 3, 3, 3\)"):
        LayerParity("conv").add(np.zeros((1, 3, 3, 3), np.uint8), codes, codes, values, values, PIXELS)


def test_float_values_may_be_off_by_what_rounding_does_and_no_more():
    grid, expected = Grid(0.5, 0, 4), np.linspace(0, 7, 10_000, dtype=np.float32)

    def judged(found, floor=None):
        layer = LayerParity("a")
        layer.add_floats(np.float32(found), expected, expected.astype(np.float64) if floor is None else floor, grid)
        return layer

    assert judged(expected).is_clean
    assert judged(expected * np.float32(1 + 1e-6)).is_clean
    # On average by more than MAX_TIE_RATE steps, or in one place by more than MAX_FLIP_STEPS.
    assert not judged(expected + 1.1e-4 * grid.scale).is_clean
    once = expected.copy()
    once[7] += 1.1 * MAX_FLIP_STEPS * grid.scale
    assert not judged(once).is_clean
    once[7] = np.nan
    assert not judged(once).is_clean
    # Unless the reference's own rounding carries it as far.
    assert judged(expected + 1.1e-4 * grid.scale, expected + 2e-5).is_clean


def test_float_values_of_an_exact_model_are_equal():
    layer = LayerParity("a", exact=True)
    ones = np.ones(4, np.float32)
    layer.add_floats(ones, ones, ones.astype(np.float64), Grid(1.0, 0, 8))
    assert layer.is_clean
    layer.add_floats(np.nextafter(ones, np.float32(2)), ones, ones.astype(np.float64), Grid(1.0, 0, 8))
    assert not layer.is_clean
