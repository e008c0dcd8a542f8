"""An image of small lettering."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.imaging.lettering import lettering


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 90)])
def test_strokes_are_one_pixel_wide_black_on_white_and_white_on_black(height, width):
    image = lettering(height, width)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 3)
    assert set(np.unique(image)) == {0, 255}
    assert (image == image[..., :1]).all()
    for half, ink in ((image[: height // 2, :, 0], 0), (image[height // 2 :, :, 0], 255)):
        drawn = half == ink
        assert 0.2 < drawn.mean() < 0.5
        # Nowhere two by two.
        assert not (drawn[1:, 1:] & drawn[1:, :-1] & drawn[:-1, 1:] & drawn[:-1, :-1]).any()


def test_images_smaller_than_a_digit_have_a_part_of_one():
    assert lettering(5, 3).shape == (5, 3, 3)
