"""How far values are from the codes they got: by hand, and against the grid's own rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm_deploy.grid import Grid
from odm_deploy.proof.layer_parity import PIXELS, TIE_STEPS, count_ties, steps_to_code
from tests.grid_strategies import grids


@pytest.mark.parametrize(
    ("value", "code", "steps"),
    [
        # Levels of this grid are -0.75, 0, 0.75 and 1.5; ties lie between them.
        (0.375, 1, 0.0),
        (0.375, 2, 0.0),
        (0.375, 0, 1.0),
        (0.375, 3, 1.0),
        (0.3, 2, 0.1),
        (0.3, 1, 0.0),
        # The first and the last code reach to infinity.
        (-100.0, 0, 0.0),
        (100.0, 3, 0.0),
        (1.5, 2, 0.5),
        # A code that the grid does not have is no value's, not even a saturated one's.
        (-100.0, -1, np.inf),
        (100.0, 4, np.inf),
        (1.875, 4, np.inf),
    ],
)
def test_distance_to_where_a_code_begins(value, code, steps):
    found = steps_to_code(np.array([value], np.float32), np.array([code]), Grid(0.75, 1, 2))
    assert found.tolist() == pytest.approx([steps], abs=1e-6)


def test_pixels_are_a_grid_of_their_own():
    found = steps_to_code(np.array([12.5, 12.25, -3.0, 300.0]), np.array([13, 13, 0, 255]), PIXELS)
    assert found.tolist() == [0.0, 0.25, 0.0, 0.0]


def test_ties_are_counted_between_codes_and_nowhere_else():
    # Levels -0.75, 0, 0.75, 1.5: three ties, and the ends of the grid are none.
    values = np.array([-1.125, -0.375, 0.375, 1.125, 1.875, 0.75, 0.3750001], np.float32)
    assert count_ties(values, Grid(0.75, 1, 2)) == 3


@settings(max_examples=100, deadline=None)
@given(grids, st.integers(0, 2**32 - 1))
def test_a_value_is_at_its_own_code_and_a_step_at_most_from_its_neighbour(grid, seed):
    rng = np.random.default_rng(seed)
    values = rng.uniform(grid.lower - grid.scale, grid.upper + grid.scale, 200).astype(np.float32)
    codes = grid.quantize(values).astype(int)
    # On coarse float32 values the quotient's own rounding is more than TIE_STEPS.
    tolerance = TIE_STEPS + 2.0**-21 * float(np.abs(values).max(initial=0) / grid.scale)
    assert steps_to_code(values, codes, grid).max() <= tolerance
    neighbour = np.where(codes < grid.code_max, codes + 1, codes - 1)
    inside = (values >= grid.lower) & (values <= grid.upper)
    assert np.all(steps_to_code(values, neighbour, grid)[inside] <= 1 + tolerance)
