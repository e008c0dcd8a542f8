"""Which tiles images are cut into: a pure function of memory, of how far a network looks, and of the engine."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.imaging.tile_size import MEMORY_SHARE, Tiles, whole_limit_px
from odm_deploy.imaging.tiling import join_bands


def test_images_are_run_whole_up_to_a_share_of_memory():
    limit = whole_limit_px(int(1000 * 200 * 200 / MEMORY_SHARE) + 100, 1000)
    tiles = Tiles(2, radius_px=8, whole_limit_px=limit)
    assert tiles.side_for(200, 200) == 0
    assert tiles.side_for(100, 400) == 0
    assert tiles.side_for(200, 201) == 192


def test_memory_that_is_not_known_is_assumed():
    assert 0 < whole_limit_px(8 << 30, None) < whole_limit_px(16 << 30, None)


def test_a_side_that_was_asked_for_is_taken():
    assert Tiles(2, 8, side=0, whole_limit_px=1).side_for(20000, 20000) == 0
    assert Tiles(2, 8, side=48).side_for(10, 10) == 48


@pytest.mark.parametrize(("radius", "smallest"), [(8, 64), (40, 160), (None, 96)])
def test_tiles_are_never_mostly_overlap(radius, smallest):
    assert Tiles(2, radius, whole_limit_px=1).side_for(500, 500) == smallest


def test_tiles_fit_the_largest_image_that_an_engine_was_built_for():
    tiles = Tiles(2, radius_px=8, whole_limit_px=10**9, largest=(270, 480))
    assert tiles.side_for(270, 480) == 0
    assert tiles.side_for(271, 480) == tiles.side_for(270, 481) == 270
    assert Tiles(2, radius_px=8, largest=(2000, 2000)).side_for(5000, 5000) == 1024


def test_only_images_larger_than_a_tile_of_an_unbounded_network_are_blended():
    unbounded = Tiles(2, radius_px=None, whole_limit_px=100 * 110)
    assert unbounded.side_for(5000, 5000) == 96
    assert unbounded.blend(5000, 5000)
    assert not unbounded.blend(100, 110)
    assert not Tiles(2, radius_px=None, side=96).blend(96, 90)
    assert not Tiles(2, radius_px=8, whole_limit_px=1).blend(5000, 5000)


def test_joined_bands_are_the_whole():
    whole = np.arange(60).reshape(5, 4, 3)
    np.testing.assert_array_equal(join_bands(iter([whole[:2], whole[2:3], whole[3:]]), 5), whole)
    assert join_bands([whole], 5) is whole
    assert join_bands([whole], None) is whole
