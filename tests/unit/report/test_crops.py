"""Crops show the same place of every image, where there is something to see."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from odm_deploy.imaging.pairs import Sample
from odm_deploy.imaging.resize import imresize
from odm_deploy.report.crops import AMPLIFIED, CROP_PX, crop_row

SCALE = 2


def decoded(panel):
    return np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(panel.png.partition(",")[2]))))


def repeated(low):
    return low.repeat(SCALE, 0).repeat(SCALE, 1)


def upscaled(images):
    """The same, as runtimes do it: float32 [1, 3, H, W] in and out."""
    return images.repeat(SCALE, 2).repeat(SCALE, 3)


def detailed_at(top, left, size=(90, 110)):
    """A flat image with noise in one square of a crop's size."""
    image = np.full((*size, 3), 90, np.uint8)
    image[top : top + CROP_PX, left : left + CROP_PX] = np.random.default_rng(0).integers(0, 256, (CROP_PX, CROP_PX, 3))
    return image


@pytest.mark.parametrize(("top", "left"), [(0, 0), (20, 31), (42, 62)])
def test_the_place_with_most_detail_is_shown_in_every_picture(top, left):
    low = detailed_at(top, left)
    row = crop_row(Sample("noise", low, repeated(low)), SCALE, upscaled)
    by_name = {panel.caption.partition(",")[0]: decoded(panel) for panel in row.panels}
    assert list(by_name) == [
        "input",
        "bicubic",
        "quantized",
        "ground truth",
        f"|quantized − ground truth| × {AMPLIFIED}",
    ]
    # The crop may begin a pixel earlier: an edge to the flat surroundings is detail, too.
    found_top, found_left = next(
        (y, x)
        for y in range(max(0, top - 1), top + 2)
        for x in range(max(0, left - 1), left + 2)
        if np.array_equal(low[y : y + CROP_PX, x : x + CROP_PX], by_name["input"])
    )
    place = (
        slice(SCALE * found_top, SCALE * (found_top + CROP_PX)),
        slice(SCALE * found_left, SCALE * (found_left + CROP_PX)),
    )
    np.testing.assert_array_equal(by_name["quantized"], repeated(low)[place])
    np.testing.assert_array_equal(by_name["bicubic"], imresize(low, SCALE)[place])


def test_differences_are_those_to_the_float_network_amplified():
    low = detailed_at(5, 5)
    row = crop_row(
        Sample("noise", low), SCALE, upscaled, lambda images: (upscaled(images).astype(np.uint8) ^ 1).astype(np.float32)
    )
    assert [panel.caption for panel in row.panels] == [
        "input", "bicubic", "float", "quantized", f"|quantized − float| × {AMPLIFIED}",
    ]  # fmt: skip
    assert (decoded(row.panels[-1]) == AMPLIFIED).all()


def test_quality_is_said_where_there_is_a_truth_large_enough():
    low = detailed_at(5, 5)
    captions = [panel.caption for panel in crop_row(Sample("noise", low, repeated(low)), SCALE, upscaled).panels]
    assert captions[2] == "quantized, inf dB"
    tiny = low[:2, :2]
    captions = [panel.caption for panel in crop_row(Sample("tiny", tiny, repeated(tiny)), SCALE, upscaled).panels]
    assert captions[1:3] == ["bicubic", "quantized"]


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (13, 20)])
def test_images_smaller_than_a_crop_are_shown_whole_along_their_shorter_side(size):
    low = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    row = crop_row(Sample("small", low), SCALE, upscaled)
    assert decoded(row.panels[0]).shape == (min(*size, CROP_PX), min(*size, CROP_PX), 3)
