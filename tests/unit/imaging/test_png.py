"""PNG files written in pieces: other decoders read the same pixels, however the rows came."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageCms

from odm_deploy.errors import InputError
from odm_deploy.imaging.png import PngWriter, paeth_predictor, write_png
from tests.factories import random_images


def encoded(pixels: np.ndarray, cuts: list[int]) -> bytes:
    stream = io.BytesIO()
    writer = PngWriter(stream, *pixels.shape, bits=8 * pixels.itemsize)
    for rows in np.split(pixels, sorted(cuts)):
        writer.write(rows)
    writer.close()
    return stream.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3, 4]),
    smooth=st.booleans(),
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_pillow_reads_the_same_pixels(height, width, channels, smooth, seed, cuts):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if smooth:
        pixels = (pixels % 4 + np.arange(width, dtype=np.uint8)[:, None] * 3).astype(np.uint8)
    with PillowImage.open(io.BytesIO(encoded(pixels, cuts))) as opened:
        opened.load()
        assert opened.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        np.testing.assert_array_equal(np.array(opened).reshape(pixels.shape), pixels)


def test_sixteen_bits_are_kept():
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7, 1), dtype=np.uint16)
    with PillowImage.open(io.BytesIO(encoded(pixels, [4]))) as opened:
        np.testing.assert_array_equal(np.array(opened).astype(np.uint16), pixels[..., 0])


def filters_in(png: bytes) -> set[int]:
    """The filter types that the rows of an 8-bit RGB file were written with: the first byte of each (PNG, 9.2)."""
    with PillowImage.open(io.BytesIO(png)) as opened:
        width, height = opened.size
    data, position = b"", 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4])
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 3 * width)
    return set(rows[:, 0].tolist())


def test_every_filter_is_used_and_the_file_is_no_larger_than_pillows():
    picture = random_images(120, 160)[0].transpose(1, 2, 0).astype(np.uint8)
    picture[:, :40] = picture[:1, :40]
    picture[:30] = np.arange(160, dtype=np.uint8)[:, None]
    ours = encoded(picture, [50])
    theirs = io.BytesIO()
    PillowImage.fromarray(picture).save(theirs, "PNG")
    assert filters_in(ours) == {1, 2, 4}
    assert len(ours) < 1.05 * theirs.tell()


def test_files_larger_than_a_chunk(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "deep" / "x.png"
    write_png(path, (noise[row : row + 30] for row in range(0, 700, 30)), 700, icc_profile=profile)
    assert path.read_bytes().count(b"IDAT") > 2
    with PillowImage.open(path) as opened:
        np.testing.assert_array_equal(np.array(opened), noise)
        assert opened.info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([], "no pixels"),
        ([np.zeros((3, 5, 3), np.uint8)], "1 rows are missing"),
        ([np.zeros((5, 5, 3), np.uint8)], r"up to \[4, 5, 3\]"),
        ([np.zeros((2, 5, 3), np.uint8), np.zeros((2, 6, 3), np.uint8)], r"up to \[2, 5, 3\]"),
        ([np.zeros((2, 5, 3), np.uint8), np.zeros((2, 5, 3), np.uint16)], "uint16"),
        ([np.zeros((4, 5, 3), np.float32)], "float32"),
    ],
)
def test_wrong_rows_leave_no_file(tmp_path, bands, message):
    with pytest.raises(InputError, match=message):
        write_png(tmp_path / "x.png", bands, 4)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named():
    with pytest.raises(InputError, match="pixels"):
        PngWriter(io.BytesIO(), 2**31, 1, 3)
    with pytest.raises(InputError, match="no-such"):
        write_png("/dev/null/no-such/x.png", [np.zeros((1, 1, 3), np.uint8)], 1)


def test_paeth_is_the_standards():
    levels = np.unique(np.concatenate([np.arange(0, 256, 7), [1, 2, 127, 128, 129, 253, 254, 255]]))
    left, up, up_left = (each.ravel() for each in np.meshgrid(levels, levels, levels))
    initial = left + up - up_left
    distances = np.abs(np.stack([left, up, up_left]) - initial)
    # The first of equals: argmin's rule is the standard's.
    expected = np.choose(np.argmin(distances, axis=0), [left, up, up_left])
    np.testing.assert_array_equal(paeth_predictor(*(each.astype(np.uint8) for each in (left, up, up_left))), expected)
