"""All 16 bits of PNG files: what FFmpeg writes is read, what is written FFmpeg reads."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image as PillowImage

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.png import write_png
from odm_deploy.imaging.reading import read_image
from odm_deploy.imaging.writing import write_image
from tests.png_files import chunk, ffmpeg_png, ffmpeg_samples, plain_png

NOISE = np.random.default_rng(3).integers(0, 65536, (9, 13, 4), dtype=np.uint16)
SMOOTH = (np.arange(9)[:, None, None] * 700 + np.arange(13)[:, None] * 333 + np.arange(4) * 9000).astype(np.uint16)


def read(path):
    return read_image(path, max_bits=16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("samples", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_ffmpeg_writes_is_read(tmp_path, channels, samples, interlaced):
    samples = samples[..., :channels]
    image = read(ffmpeg_png(tmp_path / "x.png", samples, interlaced=interlaced))
    assert (image.bits, image.gray, image.rgb.flags.writeable) == (16, channels == 1, True)
    np.testing.assert_array_equal(image.rgb, np.repeat(samples, 3, 2) if channels == 1 else samples[..., :3])
    assert (image.alpha is not None) == (channels == 4)
    if image.alpha is not None:
        np.testing.assert_array_equal(image.alpha, samples[..., 3])


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_with_alpha(tmp_path, bits):
    image = read_image(plain_png(tmp_path / "x.png", NOISE[..., :2]), max_bits=bits)
    assert image.gray and image.alpha is not None and image.bits == bits
    expected = NOISE if bits == 16 else np.rint(NOISE / 257)
    np.testing.assert_array_equal(image.rgb, np.repeat(expected[..., :1], 3, 2))
    np.testing.assert_array_equal(image.alpha, expected[..., 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_named_transparent_is(tmp_path, channels):
    samples = NOISE[..., :channels].copy()
    samples[2, 3] = samples[0, 0]
    # One step off in the lower byte only: 8 bits could not tell them apart.
    samples[4, 4] = samples[0, 0] ^ 1
    colour = struct.pack(f">{channels}H", *samples[0, 0])
    image = read(plain_png(tmp_path / "x.png", samples, ((b"tRNS", colour),)))
    assert image.alpha is not None
    assert np.argwhere(image.alpha == 0).tolist() == [[0, 0], [2, 3]]
    assert set(np.unique(image.alpha)) == {0, 65535}


def test_orientation_and_profile_are_those_of_the_file(tmp_path):
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    extra = ((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),)
    image = read(plain_png(tmp_path / "x.png", NOISE[..., :3], extra))
    np.testing.assert_array_equal(image.rgb, np.rot90(NOISE[..., :3], -1))


def test_a_profile_travels(tmp_path):
    profile = bytes(16) + b"RGB " + bytes(108)
    write_image(tmp_path / "x.png", Image(NOISE[..., :3], icc_profile=profile))
    assert read(tmp_path / "x.png").icc_profile == profile


@pytest.mark.parametrize("kind", ["gray", "rgb", "rgba"])
def test_ffmpeg_reads_what_is_written(tmp_path, kind):
    rgb = np.repeat(SMOOTH[..., :1], 3, 2) if kind == "gray" else SMOOTH[..., :3]
    alpha = NOISE[..., 3] if kind == "rgba" else None
    write_image(tmp_path / "x.png", Image(rgb, alpha, gray=kind == "gray"))
    expected = {"gray": rgb[..., :1], "rgb": rgb, "rgba": np.dstack([rgb, NOISE[..., 3]])}[kind]
    np.testing.assert_array_equal(ffmpeg_samples(tmp_path / "x.png"), expected)


def test_bands_of_16_bits(tmp_path):
    samples = np.random.default_rng(5).integers(0, 65536, (300, 200, 3), dtype=np.uint16)
    write_png(tmp_path / "x.png", np.array_split(samples, 7), 300)
    np.testing.assert_array_equal(ffmpeg_samples(tmp_path / "x.png"), samples)


def test_opaque_is_no_alpha_and_8_bits_are_the_nearest(tmp_path):
    samples = NOISE.copy()
    samples[..., 3] = 65535
    image = read_image(plain_png(tmp_path / "x.png", samples))
    assert image.alpha is None
    np.testing.assert_array_equal(image.rgb, np.rint(samples[..., :3] / 257))


def test_gray_of_other_formats_keeps_its_bits(tmp_path):
    PillowImage.fromarray(NOISE[..., 0]).save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(read(tmp_path / "x.tiff").rgb[..., 1], NOISE[..., 0])


def test_8_bit_files_are_not_deepened(tmp_path):
    write_image(tmp_path / "x.png", np.zeros((3, 4, 3), np.uint8))
    assert read(tmp_path / "x.png").bits == 8


def test_a_truncated_file_is_refused(tmp_path):
    whole = ffmpeg_png(tmp_path / "x.png", NOISE).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read image .*x\.png: "):
        read(tmp_path / "x.png")


def test_a_checksum_that_does_not_fit(tmp_path):
    whole = plain_png(tmp_path / "x.png", NOISE).read_bytes()
    at = whole.index(chunk(b"IEND", b""))
    (tmp_path / "x.png").write_bytes(whole[: at - 1] + bytes([whole[at - 1] ^ 1]) + whole[at:])
    with pytest.raises(InputError, match=r"cannot read image .*x\.png: "):
        read(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats_refuse_16_bits(tmp_path, suffix):
    with pytest.raises(UsageError, match=r"holds 8 bits a sample; use \.png"):
        write_image(tmp_path / f"x{suffix}", NOISE[..., :3])
    assert not list(tmp_path.iterdir())
