"""JPEG files that ask for more work than an image is worth."""

import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from odm_deploy.errors import InputError
from odm_deploy.imaging.jpeg import MOST_SCANS
from odm_deploy.imaging.reading import read_image
from tests.factories import random_images

RGB = random_images(24, 32)[0].transpose(1, 2, 0).astype(np.uint8)
THUMBNAILS = b"\xff\xe1\xff\xf0" + b"\xff\xda\x00\x02" * 0x3FFB + b"\xff\xd9"
"""A segment full of what would be scans elsewhere."""


def encoded(**options):
    stored = io.BytesIO()
    PillowImage.fromarray(RGB).save(stored, "JPEG", **options)
    return stored.getvalue()


def with_scans(data, more):
    """The last scan of a progressive file so many times more."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * more + data[-2:]


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("scans", [0, 20, 20_000])
def test_scans_have_a_limit(tmp_path, as_path, scans):
    data = with_scans(encoded(progressive=True), scans)
    (tmp_path / "x.jpg").write_bytes(data)
    source = tmp_path / "x.jpg" if as_path else data
    if scans < MOST_SCANS:
        assert read_image(source).rgb.shape == RGB.shape
        return
    with pytest.raises(InputError, match=f"it has more than {MOST_SCANS} scans; save it anew"):
        read_image(source)


def test_segments_have_a_limit():
    data = encoded()
    with pytest.raises(InputError, match="it has more than 10000 segments"):
        read_image(data[:2] + b"\xff\xfe\x00\x02" * 20_000 + data[2:])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}])
def test_what_lies_in_segments_or_behind_the_end_counts_for_nothing(options):
    data = encoded(**options)
    whole = data[:2] + THUMBNAILS + data[2:] + with_scans(encoded(progressive=True), 500)
    assert np.array_equal(read_image(whole).rgb, read_image(data).rgb)
