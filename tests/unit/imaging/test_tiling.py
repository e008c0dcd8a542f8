"""Tiling: cores partition the image, and a convolutional network cannot tell the difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.tiling import plan_tiles, tiled_bands

SCALE = 2
RADIUS = 1 + 2 + 1 + 1
"""Of `_network`: a 3x3, a 5x5 and a 3x3 convolution, then a 3x3 at the high resolution, which sees half a pixel far."""


def _network(seed: int):
    """A zero-padded network with integer weights, in float64: sums are exact in whatever order they are made."""
    generator = torch.Generator().manual_seed(seed)

    def conv(inputs: int, outputs: int, kernel: int) -> torch.nn.Conv2d:
        layer = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randint(-3, 4, layer.weight.shape, generator=generator))
            layer.bias.copy_(torch.randint(-3, 4, layer.bias.shape, generator=generator))
        return layer

    network = torch.nn.Sequential(
        conv(3, 4, 3), torch.nn.ReLU(), conv(4, 4, 5), conv(4, 12, 3), torch.nn.PixelShuffle(SCALE), conv(3, 3, 3)
    )

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return run


def run_tiled(run, image: np.ndarray, **options) -> np.ndarray:
    return np.concatenate(list(tiled_bands(run, image, **options)), axis=2)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 45),
    width=st.integers(1, 45),
    tile=st.integers(2 * RADIUS + 5, 40),
    count=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_tiled_equals_whole_bit_for_bit(height, width, tile, count, seed):
    image = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width)).astype(np.float64)
    run = _network(seed)
    tiled = run_tiled(run, image, tile=tile, overlap=RADIUS, scale=SCALE)
    assert np.array_equal(tiled, run(image))


def test_too_little_overlap_shows():
    # Otherwise the test above could not fail.
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 40)).astype(np.float64)
    run = _network(0)
    assert not np.array_equal(run_tiled(run, image, tile=20, overlap=RADIUS - 2, scale=SCALE), run(image))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 20), st.data())
def test_cores_partition_and_margins_hold(height, width, overlap, data):
    tile = data.draw(st.integers(2 * overlap + 1, 2 * overlap + 60))
    tiles = plan_tiles(height, width, tile, overlap)
    answered = np.zeros((height, width), int)
    for rows, columns in tiles:
        answered[rows.core_start : rows.core_stop, columns.core_start : columns.core_stop] += 1
        for span, length in ((rows, height), (columns, width)):
            assert span.stop - span.start == min(tile, length)
            assert span.start == 0 or span.core_start - span.start >= overlap
            assert span.stop == length or span.stop - span.core_stop >= overlap
            assert 0 <= span.start <= span.core_start < span.core_stop <= span.stop <= length
    assert (answered == 1).all()


def test_no_more_tiles_than_needed():
    # 100 pixels in tiles of 40 that keep 20 inside, 30 at each border: 30 + 20 + 20 + 30.
    assert [columns.core_stop for _, columns in plan_tiles(8, 100, 40, 10)] == [30, 50, 70, 100]
    assert len(plan_tiles(100, 100, 40, 10)) == 16


@pytest.mark.parametrize("tile", [0, 64])
def test_small_image_runs_whole(tile):
    ((rows, columns),) = plan_tiles(50, 64, tile, 10)
    assert (rows.stop, columns.stop) == (50, 64)


def test_output_has_the_type_that_run_returns():
    image = np.full((1, 3, 30, 20), 3.7, np.float32)
    sr = run_tiled(lambda x: np.rint(x).astype(np.uint8), image, tile=16, overlap=2, scale=1)
    assert sr.dtype == np.uint8
    assert sr.shape == image.shape
    assert set(np.unique(sr)) == {4}


def test_progress_is_told_once_a_tile():
    calls, seen = [], []

    def track(pieces, total):
        seen.append(total)
        yield from pieces

    def run(x):
        calls.append(x.shape)
        return x

    run_tiled(run, np.zeros((1, 3, 40, 40), np.float32), tile=16, overlap=4, scale=1, track=track)
    assert seen == [len(calls)]
    assert {shape[2:] for shape in calls} == {(16, 16)}


@pytest.mark.parametrize(("tile", "overlap"), [(20, 10), (1, 1), (73, 37)])
def test_tile_without_core_is_a_usage_error_with_both_values(tile, overlap):
    with pytest.raises(UsageError, match=rf"{tile} pixels.*{overlap} pixels? far.*--tile {2 * overlap + 1}"):
        plan_tiles(80, 80, tile, overlap)
    assert plan_tiles(80, 80, 2 * overlap + 1, overlap)


def test_negative_values_are_refused():
    with pytest.raises(UsageError, match="tile -1"):
        plan_tiles(10, 10, -1, 0)


def test_wrong_scale_is_named():
    with pytest.raises(InputError, match=r"does not upscale by 4.*\[1, 3, 8, 8\] into \[1, 3, 16, 16\]"):
        run_tiled(_network(0), np.zeros((1, 3, 8, 8)), tile=0, overlap=0, scale=4)


def test_smallest_tile_keeps_one_pixel():
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 13, 14)).astype(np.float64)
    run = _network(1)
    tiled = run_tiled(run, image, tile=2 * RADIUS + 1, overlap=RADIUS, scale=SCALE)
    assert np.array_equal(tiled, run(image))
