"""Distances between images whose difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.proof.parity_report import Distance
from tests.known_distances import distance, pixels


def test_equal_images_are_identical():
    found = distance()
    assert (found.values, found.differing, found.max_lsb, found.identical, found.psnr_db) == (12, 0, 0, 1.0, math.inf)


def test_distance_sums_over_images():
    found = distance(103, 99)
    found.add(pixels(100, 100, 90), pixels())
    assert (found.values, found.differing, found.max_lsb) == (24, 3, 10)
    assert found.identical == pytest.approx(21 / 24)
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 1 + 100) / 24)))
    assert set(found.to_dict()) == {"identical_pixels", "max_lsb", "psnr_between_db"}


def test_differences_do_not_wrap_around():
    found = Distance()
    found.add(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8))
    assert (found.max_lsb, found.psnr_db) == (255, 0.0)


def test_images_of_other_sizes_are_not_compared():
    with pytest.raises(InputError, match=r"shapes \(2, 2, 3\) and \(2, 4, 3\)"):
        Distance().add(pixels(), pixels(shape=(2, 4, 3)))
