"""The chart that is calibrated on besides the images: its quarters, at any size."""

import pytest

from odm_deploy.quantization.contrast_chart import contrast_chart


@pytest.mark.parametrize("size", [(48, 48), (7, 5), (1, 1)])
def test_its_quarters_are_black_and_white_by_turns(size):
    height, width = size
    chart = contrast_chart(height, width)
    assert chart.shape == (1, 3, height, width)
    upper, left = height // 2, width // 2
    for rows, columns, value in (
        (slice(None, upper), slice(None, left), 0),
        (slice(None, upper), slice(left, None), 255),
        (slice(upper, None), slice(None, left), 255),
        (slice(upper, None), slice(left, None), 0),
    ):
        assert (chart[..., rows, columns] == value).all()


def test_strokes_cross_the_left_half_of_every_quarter_in_the_other_colour():
    plain, crossed = contrast_chart(48, 48), contrast_chart(48, 48, strokes=True)
    differs = (plain != crossed)[0]
    for rows in (slice(None, 24), slice(24, None)):
        for left in (0, 24):
            strokes, bare = differs[:, rows, left : left + 12], differs[:, rows, left + 12 : left + 24]
            assert 0.2 < strokes.float().mean() < 0.4
            assert not bare.any()
            # One pixel wide.
            assert not (strokes[:, 4:7, 1:] & strokes[:, 4:7, :-1]).any()


def test_a_chart_of_one_pixel_can_have_strokes():
    assert contrast_chart(1, 1, strokes=True).shape == (1, 3, 1, 1)
