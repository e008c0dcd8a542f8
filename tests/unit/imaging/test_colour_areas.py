"""An image of areas of one colour."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.imaging.colour_areas import CORNER_COLOURS, area_colours, colour_areas


@pytest.mark.parametrize(("height", "width"), [(64, 96), (47, 90), (2, 4)])
@pytest.mark.parametrize("scale", [1, 3])
def test_each_corner_of_the_cube_has_an_area_whose_colour_is_found_again(height, width, scale):
    image = colour_areas(height, width)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 3)
    enlarged = image.repeat(scale, 0).repeat(scale, 1)
    assert area_colours(enlarged.astype(np.float64)).tolist() == [list(map(float, c)) for c in CORNER_COLOURS.values()]


def test_borders_of_areas_do_not_count():
    image = colour_areas(32, 64).astype(np.float64)
    image[14:18] = 77
    image[:, 30:34] = 77
    assert area_colours(image).tolist() == area_colours(colour_areas(32, 64).astype(np.float64)).tolist()
