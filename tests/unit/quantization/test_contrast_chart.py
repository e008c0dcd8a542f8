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
