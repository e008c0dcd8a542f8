import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from tests.grid_strategies import bit_widths, free_grids, grids, ordinary_grids, unhurried, values_near

bounds = st.floats(-1e6, 1e6)


@unhurried
@given(grids, st.data())
def test_codes_are_in_range_whatever_comes(grid, data):
    codes = grid.quantize(data.draw(values_near(grid)))
    assert codes.dtype == np.uint8
    assert codes.max() <= grid.code_max


@unhurried
@given(ordinary_grids())
def test_rounds_ties_to_the_even_neighbour(grid):
    # (k + 1/2) * s is exact only where s has a bit to spare, which a power of two always has.
    grid = Grid(2.0 ** math.frexp(grid.scale)[1], grid.zero_point, grid.bits)
    ties = np.arange(-grid.zero_point, grid.code_max - grid.zero_point, dtype=np.float32) + np.float32(0.5)
    codes = grid.quantize(ties * np.float32(grid.scale))
    steps_from_zero = codes.astype(int) - grid.zero_point
    assert (steps_from_zero % 2 == 0).all()
    assert (np.abs(steps_from_zero - ties) == 0.5).all()


def test_an_example_by_hand():
    grid = Grid(0.5, 2, 3)
    x = np.array([-9.0, -1.0, -0.25, 0.0, 0.25, 0.75, 1.1, 2.5, 9.0], np.float32)
    np.testing.assert_array_equal(grid.quantize(x), [0, 0, 2, 2, 2, 4, 4, 7, 7])
    np.testing.assert_array_equal(grid.fake_quantize(x), [-1, -1, 0, 0, 0, 1, 1, 2.5, 2.5])


def test_a_free_example_by_hand():
    grid = Grid.free(1.0, 4.0, 2)
    assert (grid.scale, grid.center, grid.lower, grid.upper) == (1.0, 3.0, 1.0, 4.0)
    np.testing.assert_array_equal(grid.fake_quantize(np.array([-5.0, 1.5, 2.5, 2.6, 99.0])), [1, 1, 3, 3, 4])
    assert grid.pad_value == 1.0


@unhurried
@given(ordinary_grids())
def test_zero_is_a_level(grid):
    zero = np.zeros(1, np.float32)
    assert grid.quantize(zero)[0] == grid.zero_point
    assert grid.fake_quantize(zero)[0] == 0.0
    assert grid.pad_value == 0.0


@unhurried
@given(ordinary_grids())
def test_levels_are_fixed_points(grid):
    codes = np.arange(grid.code_max + 1, dtype=np.uint8)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(codes)), codes)


@unhurried
@given(free_grids())
def test_levels_of_a_free_grid_are_fixed_points_near_zero(grid):
    # Far from zero the levels collapse in float32; nothing can tell them apart there.
    assume(abs(grid.center) < 100 * grid.scale)
    codes = np.arange(grid.code_max + 1, dtype=np.uint8)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(codes)), codes)


@unhurried
@given(grids, st.data())
def test_is_monotone(grid, data):
    x = np.sort(data.draw(values_near(grid)))
    assert (np.diff(grid.quantize(x).astype(int)) >= 0).all()


@unhurried
@given(ordinary_grids(), st.floats(-500.0, 500.0))
def test_nothing_inside_moves_more_than_half_a_step(grid, unit):
    x = np.array([unit * grid.scale], np.float64)
    assume(grid.lower <= x[0] <= grid.upper)
    assert abs(grid.fake_quantize(x)[0] - x[0]) <= grid.scale * 0.5 * (1 + 1e-9)


def test_float64_is_computed_in_float64_and_everything_else_in_float32():
    grid = Grid(0.1, 8, 4)
    assert grid.fake_quantize(np.ones(1, np.float64)).dtype == np.float64
    assert grid.fake_quantize(np.ones(1, np.float16)).dtype == np.float32
    # float32(0.1) is a little more than 0.1: 0.75 is 7.4999999 steps in float64, but a tie in float32.
    grid, x = Grid(0.1, 0, 4), np.array([0.75])
    assert grid.quantize(x)[0] == 7
    assert grid.quantize(x.astype(np.float32))[0] == 8


@unhurried
@given(bounds, bounds, bit_widths)
def test_from_range_spans_the_range_and_zero(a, b, bits):
    lower, upper = min(a, b), max(a, b)
    grid = Grid.from_range(lower, upper, bits)
    slack = grid.scale * (0.5 + 1e-4)
    assert grid.lower <= 0.0 <= grid.upper
    assert grid.lower <= min(lower, 0.0) + slack
    assert grid.upper >= max(upper, 0.0) - slack
    if lower < upper and grid.scale > 1e-30:
        assert grid.upper - grid.lower == pytest.approx(max(upper, 0.0) - min(lower, 0.0), rel=1e-5)


@unhurried
@given(bounds, bounds, bit_widths)
def test_a_power_of_two_scale_is_the_next_one_up(a, b, bits):
    lower, upper = min(a, b), max(a, b)
    plain, rounded = (Grid.from_range(lower, upper, bits, power_of_two=flag) for flag in (False, True))
    assert rounded.is_power_of_two
    assert plain.scale <= rounded.scale * (1 + 1e-6)
    assert rounded.scale < 2 * plain.scale * (1 + 1e-6)


@unhurried
@given(st.floats(-1e4, -1e-3), st.floats(1e-3, 1e4))
def test_a_power_of_two_of_8_bits_leaves_as_much_room_below_as_above(lower, upper):
    grid = Grid.from_range(lower, upper, 8, power_of_two=True)
    # Zero points are even.
    assert abs((lower - grid.lower) - (grid.upper - upper)) <= 2 * grid.scale * (1 + 1e-6)


@unhurried
@given(st.floats(1e-3, 1e4), bit_widths)
def test_a_power_of_two_leaves_room_on_one_side_where_values_never_change_their_sign(upper, bits):
    assert Grid.from_range(0.0, upper, bits, power_of_two=True).zero_point == 0
    below = Grid.from_range(-upper, 0.0, bits, power_of_two=True)
    assert abs(below.lower + upper) <= below.scale


@unhurried
@given(bounds, bounds, bit_widths)
def test_symmetric_grids_of_8_bits_have_zero_in_the_middle_and_hold_the_range(a, b, bits):
    lower, upper = min(a, b), max(a, b)
    grid = Grid.from_range(lower, upper, bits, symmetric=True)
    if bits < 8:
        assert grid == Grid.from_range(lower, upper, bits)
        return
    assert grid.is_symmetric
    assert grid.lower <= min(lower, 0.0) * (1 - 1e-6)
    assert grid.upper >= max(upper, 0.0) * (1 - 1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_all_zero_layer_gets_a_grid(bits):
    grid = Grid.from_range(0.0, 0.0, bits)
    assert grid.fake_quantize(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_a_range_of_denormals_gets_the_smallest_normal_scale():
    assert Grid.from_range(0.0, 1e-42, 4).scale == np.finfo(np.float32).tiny
    assert Grid.free(0.0, 1e-42, 4).scale == np.finfo(np.float32).tiny


@unhurried
@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3), bit_widths)
def test_free_puts_the_first_and_last_level_on_the_bounds(lower, width, bits):
    grid = Grid.free(lower, lower + width, bits)
    tolerance = 1e-6 * (abs(lower) + width) * 2**bits
    assert grid.is_free
    assert grid.lower == pytest.approx(lower, abs=tolerance)
    assert grid.upper == pytest.approx(lower + width, abs=tolerance)
    levels = grid.dequantize(np.arange(grid.code_max + 1, dtype=np.uint8))
    assert grid.pad_value == levels[np.abs(levels).argmin()]


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (0.0, math.nan), (-math.inf, 1.0), (0.0, math.inf)])
def test_impossible_ranges_are_refused(bounds):
    with pytest.raises(InputError, match="no such range"):
        Grid.from_range(*bounds, bits=8)
    with pytest.raises(InputError, match="no such range"):
        Grid.free(*bounds, bits=8)


def test_a_free_grid_needs_a_range():
    with pytest.raises(InputError, match=r"\[1.0, 1.0\]"):
        Grid.free(1.0, 1.0, 8)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((1.0, 0, 1), "1 bits"),
        ((1.0, 0, 9), "9 bits"),
        ((0.0, 0, 4), "scale 0.0"),
        ((-1.0, 0, 4), "scale -1.0"),
        ((1e-40, 0, 4), "scale 1e-40"),
        ((math.inf, 0, 4), "scale inf"),
        ((math.nan, 0, 4), "scale nan"),
        ((1.0, 16, 4), "zero point 16"),
        ((1.0, -1, 4), "zero point -1"),
        ((1.0, 8, 4, math.nan), "center nan"),
        ((1.0, 7, 4, 0.5), "zero point 7"),
    ],
)
def test_impossible_grids_are_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        Grid(*arguments)


@unhurried
@given(grids)
def test_survives_a_trip_through_json(grid):
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"scale": 1.0, "zero_point": 0},
        {"scale": 1.0, "zero_point": 0, "bits": 4, "colour": 1},
        {"scale": "1.0", "zero_point": 0, "bits": 4},
        {"scale": 1.0, "zero_point": 0.0, "bits": 4},
        {"scale": 1.0, "zero_point": 8, "bits": 4, "center": "0"},
    ],
)
def test_what_is_no_grid_is_refused(plain):
    with pytest.raises(InputError, match="not a grid"):
        Grid.from_dict(plain)


def test_the_scale_is_rounded_to_float32_once():
    assert Grid(0.1, 0, 4).scale == float(np.float32(0.1))
    assert Grid(0.1, 0, 4) == Grid(float(np.float32(0.1)), 0, 4)
