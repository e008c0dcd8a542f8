"""Areas of one colour."""

from __future__ import annotations

import pytest

from odm_deploy.quantization.colour_areas import CORNER_COLOURS, colour_area, middle_colour


@pytest.mark.parametrize(("height", "width"), [(48, 64), (1, 1), (2, 3)])
@pytest.mark.parametrize("name", CORNER_COLOURS)
def test_its_colour_is_found_again_at_every_size(name, height, width):
    area = colour_area(name, height, width)
    assert area.shape == (1, 3, height, width)
    assert tuple(middle_colour(area).tolist()) == CORNER_COLOURS[name]


def test_borders_do_not_count():
    area = colour_area("red", 32, 64)
    for edge in (area[..., :8, :], area[..., -8:, :], area[..., :16], area[..., -16:]):
        edge[:] = 77.0
    assert middle_colour(area).tolist() == [255.0, 0.0, 0.0]
