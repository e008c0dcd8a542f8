from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odm_deploy.quantization.power_of_two import (
    as_integer,
    bits_of,
    common_exponent,
    nearest_power_of_two,
    round_to_multiples,
)


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_nearest_power_of_two_is_within_half_an_octave(value):
    nearest = nearest_power_of_two(torch.tensor([value]))
    assert (torch.frexp(nearest).mantissa == 0.5).all()
    assert abs(np.log2(float(nearest) / value)) <= 0.5 + 1e-9


def test_powers_of_two_stay_what_they_are():
    powers = torch.exp2(torch.arange(-100.0, 100.0))
    assert torch.equal(nearest_power_of_two(powers), powers)
    assert (torch.frexp(powers).mantissa == 0.5).all()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_an_odd_integer_times_a_power_of_two(value):
    integer, exponent = as_integer(value)
    assert Fraction(value) == Fraction(integer) * Fraction(2) ** exponent
    assert integer % 2 == 1 or value == 0


@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=5), st.integers(-30, 30))
def test_common_exponent_is_the_largest_that_divides_all(integers, exponent):
    values = np.ldexp(np.array(integers, float), exponent)
    common = common_exponent(values)
    units = np.ldexp(values, -common)
    assert np.array_equal(units, np.rint(units))
    assert not values.any() or (units % 2 == 1).any()


def test_multiples_are_nearest_and_ties_even():
    values = torch.tensor([0.24, 0.25, 0.75, -0.25, -0.26, 1e6 + 0.5])
    assert round_to_multiples(values, 0.5).tolist() == [0.0, 0.0, 1.0, 0.0, -0.5, 1e6 + 0.5]
    assert round_to_multiples(torch.tensor([5.0, 5.0]), torch.tensor([2.0, 4.0])).tolist() == [4.0, 4.0]


@pytest.mark.parametrize(("magnitude", "bits"), [(0, 0.0), (1, 0.0), (2**24, 24.0)])
def test_bits_of_a_bound(magnitude, bits):
    assert bits_of(magnitude) == bits
