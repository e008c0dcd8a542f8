"""imresize: against the public files, against exact rational arithmetic, against checked-in values."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.resize import downscale, imresize


def _keys(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return 1 - x * x * (5 - 3 * x) / 2
    if x <= 2:
        return (2 - x) ** 2 * (1 - x) / 2
    return Fraction(0)


def _exact_column(column: list[int], scale: Fraction, length: int) -> list[Fraction]:
    """One column resized without any rounding error, from the definition: centre-aligned, mirrored, normalised."""
    shrink = min(scale, Fraction(1))
    count = len(column)
    result = []
    for row in range(length):
        centre = (row + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = 2 / shrink
        total = weight_sum = Fraction(0)
        for j in range(math.floor(centre - reach), math.ceil(centre + reach) + 1):
            weight = _keys(shrink * (centre - j))
            mirrored = j % (2 * count)
            total += weight * column[min(mirrored, 2 * count - 1 - mirrored)]
            weight_sum += weight
        result.append(total / weight_sum)
    return result


def _rounded(value: Fraction) -> int:
    return min(max(math.floor(value + Fraction(1, 2)), 0), 255)


columns = hnp.arrays(np.uint8, st.integers(1, 24))


@settings(max_examples=60, deadline=None)
@given(columns, st.sampled_from(["1/8", "1/4", "1/2", "2", "4"]))
def test_equals_exact_arithmetic_where_weights_are_dyadic(column, factor):
    scale = Fraction(factor)
    length = math.ceil(scale * len(column))
    expected = [_rounded(value) for value in _exact_column(column.tolist(), scale, length)]
    assert imresize(column[:, None], scale)[:, 0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(columns, st.sampled_from(["1/3", "2/3", "5/7", "3/2", "3"]))
def test_equals_exact_arithmetic_away_from_ties(column, factor):
    scale = Fraction(factor)
    length = math.ceil(scale * len(column))
    result = imresize(column[:, None], scale)[:, 0].tolist()
    for value, exact in zip(result, _exact_column(column.tolist(), scale, length), strict=True):
        distance_to_tie = abs(exact - math.floor(exact) - Fraction(1, 2))
        assert abs(value - _rounded(exact)) <= (1 if distance_to_tie < 1e-9 else 0)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(4, 12), st.integers(4, 12))))
def test_rows_first_then_columns_with_rounding_between(image):
    height, width = math.ceil(image.shape[0] / 2), math.ceil(image.shape[1] / 2)
    rows = [
        [_rounded(v) for v in _exact_column(image[:, x].tolist(), Fraction(1, 2), height)]
        for x in range(image.shape[1])
    ]
    between = np.array(rows).T
    expected = [[_rounded(v) for v in _exact_column(between[y].tolist(), Fraction(1, 2), width)] for y in range(height)]
    assert imresize(image, Fraction(1, 2)).tolist() == expected


def test_order_of_the_passes_matters():
    # Otherwise the test above could not tell which comes first.
    image = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    assert not np.array_equal(imresize(image, 0.5), imresize(image.T, 0.5).T)


def test_values_are_those_that_matlab_gave(golden):
    expected = json.loads((golden / "imresize_bicubic.json").read_text())
    image = np.array(expected["image"], np.uint8)
    for factor, rows in expected["resized"].items():
        assert imresize(image, Fraction(factor)).tolist() == rows, factor


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_reproduces_every_public_file(data_root, name, scale):
    folder = data_root / "benchmark" / name
    for path in list_images(folder / "HR"):
        low, high = downscale(read_rgb(path), scale)
        assert high.shape[:2] == (low.shape[0] * scale, low.shape[1] * scale)
        assert np.array_equal(low, read_rgb(folder / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png")), path.name


def test_channels_are_independent():
    image = np.random.default_rng(3).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    together = imresize(image, Fraction(1, 2))
    assert together.shape == (5, 7, 3)
    for channel in range(3):
        assert np.array_equal(together[..., channel], imresize(image[..., channel], Fraction(1, 2)))


@pytest.mark.parametrize("factor", ["1/4", "1/3", "1", "2", "4"])
def test_constant_stays_constant(factor):
    image = np.full((9, 11, 3), 201, np.uint8)
    assert set(np.unique(imresize(image, Fraction(factor)))) == {201}


def test_scale_one_is_identity():
    image = np.random.default_rng(3).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    assert np.array_equal(imresize(image, 1), image)


def test_output_sizes():
    image = np.zeros((10, 13, 3), np.uint8)
    assert imresize(image, Fraction(1, 4)).shape == (3, 4, 3)
    assert imresize(image, size=(7, 40)).shape == (7, 40, 3)
    assert imresize(image[..., 0], 4).shape == (40, 52)
    assert imresize(image[:1, :1], 4).shape == (4, 4, 3)


def test_shrinking_looks_further_than_four_pixels():
    image = np.zeros((32, 1), np.uint8)
    image[::8] = 255  # never among the four neighbours of a centre at 3.5, 11.5, ...
    assert imresize(image, Fraction(1, 8)).min() > 0


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros((1, 3, 4, 4), np.uint8)]
)
def test_refuses_other_arrays(array):
    with pytest.raises(InputError, match="uint8"):
        imresize(array, 2)


@pytest.mark.parametrize(
    "arguments", [{}, {"scale": 2, "size": (2, 2)}, {"scale": 0}, {"scale": math.inf}, {"size": (0, 3)}]
)
def test_refuses_senseless_calls(arguments):
    with pytest.raises(UsageError, match="give"):
        imresize(np.zeros((4, 4, 3), np.uint8), **arguments)


def test_downscale_crops_and_refuses_too_small():
    low, high = downscale(np.zeros((9, 14, 3), np.uint8), 4)
    assert (low.shape, high.shape) == ((2, 3, 3), (8, 12, 3))
    with pytest.raises(InputError, match="14x3"):
        downscale(np.zeros((3, 14, 3), np.uint8), 4)
