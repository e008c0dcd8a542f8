"""8 and 16 bits are the same 0..255 to a network, and come back rounded and clamped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.imaging.pixels import bits_of, from_network, to_eight_bits, to_network, to_pixels

EVERY_8 = np.arange(256, dtype=np.uint8)
EVERY_16 = np.arange(65536, dtype=np.uint16)


def test_both_depths_have_the_same_black_and_white():
    values = to_network(EVERY_16)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[::257], to_network(EVERY_8))
    np.testing.assert_array_equal(values, (EVERY_16.astype(np.float64) / 65535 * 255).astype(np.float32))


@pytest.mark.parametrize(("pixels", "bits"), [(EVERY_8, 8), (EVERY_16, 16)])
def test_what_a_network_leaves_alone_comes_back(pixels, bits):
    assert bits_of(pixels) == bits
    back = from_network(to_network(pixels).astype(np.float32), bits)
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


def test_floats_are_rounded_half_to_even_and_clamped():
    values = [-3.0, 0.5, 1.5, 254.4, 300.0]
    assert from_network(np.array(values, np.float32), 8).tolist() == [0, 0, 2, 254, 255]
    # 128.5 is 33024.5 steps of 257, 127.5 is 32767.5 of them.
    assert from_network(np.array([-3.0, 128.5, 127.5, 300.0], np.float32), 16).tolist() == [0, 33024, 32768, 65535]
    # Half floats end at 65504: they must not overflow on the way.
    assert from_network(np.array([255.0], np.float16), 16).tolist() == [65535]


def test_uint8_from_a_network_stays_as_it_is():
    assert from_network(EVERY_8, 8) is EVERY_8


def test_eight_bits_are_the_nearest():
    exact = EVERY_16.astype(np.float64) / 257
    np.testing.assert_array_equal(to_eight_bits(EVERY_16), np.rint(exact))
    assert to_eight_bits(EVERY_8) is EVERY_8


def test_pixels_of_a_batch_are_rounded_half_to_even_and_clamped():
    image = np.array([0.5, 1.5, 2.5, -7.0, 254.5, 300.0], np.float32).reshape(1, 3, 1, 2)
    assert to_pixels(image).transpose(2, 0, 1).ravel().tolist() == [0, 2, 2, 0, 254, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_output_that_is_not_finite_is_no_image(bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        to_pixels(np.array([bad, 0, 0], np.float32).reshape(1, 3, 1, 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_no_number_is_no_black_pixel(bits):
    values = np.full((1, 3, 40, 50), 128.0, np.float32)
    assert from_network(values.copy(), bits).min() > 0
    values[0, 1, 39, 49] = np.nan
    with pytest.raises(InputError, match="the output holds NaN"):
        from_network(values, bits)
