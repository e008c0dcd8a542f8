"""Blended tiles: weights that sum to one, the whole image's bits where tiles agree, and no edge where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.blending import ALIGN_PX, SMALLEST_BLENDED_TILE_PX, blended_bands, plan_fades
from odm_deploy.imaging.tiling import tiled_bands

SCALE = 2


def enlarged(images: np.ndarray) -> np.ndarray:
    """What no tile can get wrong."""
    return images.repeat(SCALE, 2).repeat(SCALE, 3)


def blurred(images: np.ndarray) -> np.ndarray:
    """A network that looks 4 pixels far, and sees black beyond the image."""
    padded = np.pad(images.astype(np.int64), ((0, 0), (0, 0), (4, 4), (4, 4)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(2, 3))
    return enlarged((windows.sum(axis=(4, 5)) // 81).astype(np.uint8))


def brightened(images: np.ndarray) -> np.ndarray:
    """A network that looks everywhere: it takes the image's own mean away."""
    return enlarged((images - images.mean(axis=(2, 3), keepdims=True) + 127).clip(0, 255).astype(np.uint8))


def together(run, image: np.ndarray, tile: int) -> np.ndarray:
    return np.concatenate(list(blended_bands(run, image, tile=tile, scale=SCALE)), axis=2)


def noise(height: int, width: int, seed: int = 0, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 1500), tile=st.integers(SMALLEST_BLENDED_TILE_PX, 400))
def test_every_pixel_is_shown_and_far_from_cuts(length, tile):
    fades = plan_fades(length, tile)
    shown = np.zeros(length, int)
    for index, fade in enumerate(fades):
        shown[fade.fade_in : fade.fade_out_end] += 1
        assert fade.stop - fade.start <= tile
        assert fade.start % ALIGN_PX == 0
        assert fade.fade_in <= fade.fade_in_end <= fade.fade_out <= fade.fade_out_end
        if index:
            # A quarter of the strip, which is a quarter of the tile; rounding takes up to two pixels.
            assert fade.fade_in - fade.start >= tile // 16 - 2
            assert (fade.fade_in, fade.fade_in_end) == (fades[index - 1].fade_out, fades[index - 1].fade_out_end)
        if index < len(fades) - 1:
            assert fade.stop - fade.start == tile
            assert fade.stop - fade.fade_out_end >= tile // 16 - 2
    assert (fades[0].fade_in, fades[-1].fade_out_end) == (0, length)
    assert set(shown) <= {1, 2}


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 230),
    width=st.integers(1, 230),
    tile=st.integers(SMALLEST_BLENDED_TILE_PX, 140),
    count=st.integers(1, 2),
    run=st.sampled_from([enlarged, blurred]),
    seed=st.integers(0, 99),
)
def test_what_tiles_agree_on_is_kept_to_the_bit(height, width, tile, count, run, seed):
    image = noise(height, width, seed, count)
    np.testing.assert_array_equal(together(run, image, tile), run(image))


def test_where_tiles_disagree_there_is_no_edge():
    # Light from left to right: every tile has another mean, and hard cuts would show as steps of many levels.
    image = np.broadcast_to(np.linspace(0, 255, 400), (1, 3, 120, 400)).astype(np.uint8)
    whole = brightened(image).astype(int)
    bands = tiled_bands(brightened, image, tile=128, overlap=32, scale=SCALE)
    cut = np.concatenate(list(bands), axis=2).astype(int)
    blended = together(brightened, image, 128).astype(int)
    assert np.abs(np.diff(cut, axis=3)).max() > 20
    assert np.abs(np.diff(blended, axis=3)).max() <= 5
    assert np.abs(np.diff(whole, axis=3)).max() <= 2


def test_progress_is_told_once_a_tile_and_zero_is_whole():
    steps: list[int] = []

    def track(pieces, total):
        steps.append(total)
        yield from pieces

    image = noise(100, 250)
    list(blended_bands(enlarged, image, tile=SMALLEST_BLENDED_TILE_PX, scale=SCALE, track=track))
    list(blended_bands(enlarged, image, tile=0, scale=SCALE, track=track))
    assert steps == [2 * len(plan_fades(250, SMALLEST_BLENDED_TILE_PX)), 1]


def test_too_small_tiles_and_a_wrong_scale_are_named():
    with pytest.raises(UsageError, match=f"tiles of 64 pixels.*--tile {SMALLEST_BLENDED_TILE_PX}"):
        plan_fades(500, 64)
    with pytest.raises(InputError, match="does not upscale by 3"):
        list(blended_bands(enlarged, noise(9, 9), tile=0, scale=3))
