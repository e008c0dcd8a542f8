"""Image files: every mode to RGB, every hostile file to one InputError, writes whole or not at all."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageCms

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import TooLargeError, list_images, list_other_images, read_image, read_rgb
from odm_deploy.imaging.writing import check_writable, encode_png, write_image

RGB = np.random.default_rng(7).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def _saved(path, array, mode=None, **options):
    image = PillowImage.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_lossless_round_trip(tmp_path, suffix):
    path = tmp_path / f"deep/folder/x{suffix}"
    write_image(path, RGB)
    image = read_image(path)
    assert np.array_equal(image.rgb, RGB)
    assert (image.height, image.width) == (9, 13)
    assert image.rgb.flags.writeable
    assert image.rgb.flags.c_contiguous
    assert image.alpha is None
    assert not image.gray


@pytest.mark.parametrize("alpha", [None, RGB[..., 0]])
def test_bytes_are_read_as_the_file_that_holds_them(tmp_path, alpha):
    image = Image(RGB, alpha)
    write_image(tmp_path / "x.png", image)
    data = encode_png(image)
    assert data == (tmp_path / "x.png").read_bytes()
    read = read_image(data)
    assert np.array_equal(read.rgb, RGB)
    assert (read.alpha is None) == (alpha is None)
    deep = (RGB * np.uint16(256)).astype(np.uint16)
    assert np.array_equal(read_image(encode_png(Image(deep)), max_bits=16).rgb, deep)


@pytest.mark.parametrize("content", [b"", b"hello", encode_png(Image(RGB))[:90]])
def test_bytes_that_are_no_image_are_an_input_error(content):
    with pytest.raises(InputError, match="cannot read the image"):
        read_image(content)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_keeps_full_resolution_chroma(tmp_path, suffix):
    # One-pixel red and blue columns: halved chroma would blur them into purple.
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, 0::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    write_image(tmp_path / f"x{suffix}", stripes)
    assert np.abs(read_rgb(tmp_path / f"x{suffix}").astype(int) - stripes).max() < 32


def test_one_pixel(tmp_path):
    write_image(tmp_path / "x.png", RGB[:1, :1])
    assert np.array_equal(read_rgb(tmp_path / "x.png"), RGB[:1, :1])


def test_gray_file_has_three_equal_channels_and_is_written_as_gray(tmp_path):
    write_image(tmp_path / "x.png", RGB[..., 0])
    image = read_image(tmp_path / "x.png")
    assert image.gray
    assert np.array_equal(image.rgb, np.repeat(RGB[..., :1], 3, axis=2))
    write_image(tmp_path / "y.png", image)
    with PillowImage.open(tmp_path / "y.png") as again:
        assert again.mode == "L"


def test_gray_source_with_unequal_channels_is_written_in_colour(tmp_path):
    write_image(tmp_path / "x.png", Image(rgb=RGB, gray=True))
    assert np.array_equal(read_rgb(tmp_path / "x.png"), RGB)


def test_alpha_round_trip(tmp_path):
    alpha = RGB[..., 0]
    for name in ("x.png", "x.webp"):
        write_image(tmp_path / name, Image(rgb=RGB, alpha=alpha))
        image = read_image(tmp_path / name)
        assert np.array_equal(image.rgb, RGB)
        assert image.alpha is not None
        assert np.array_equal(image.alpha, alpha)


def test_opaque_alpha_is_none(tmp_path):
    path = _saved(tmp_path / "x.png", np.dstack([RGB, np.full((9, 13), 255, np.uint8)]))
    assert read_image(path).alpha is None


def test_jpeg_refuses_alpha(tmp_path):
    with pytest.raises(UsageError, match="alpha"):
        write_image(tmp_path / "x.jpg", Image(rgb=RGB, alpha=RGB[..., 0]))
    assert list(tmp_path.iterdir()) == []


def test_palette_with_transparency(tmp_path):
    image = PillowImage.fromarray((RGB[..., 0] // 128).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "x.png", transparency=bytes([0, 255]))
    read = read_image(tmp_path / "x.png")
    assert read.alpha is not None
    assert set(np.unique(read.alpha)) == {0, 255}
    assert {tuple(p) for p in read.rgb[read.alpha == 255]} == {(200, 100, 50)}


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    samples = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    PillowImage.fromarray(samples).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.gray
    assert image.rgb[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255
    PillowImage.frombytes("CMYK", (8, 8), cmyk.tobytes()).save(tmp_path / "cyan.jpg", quality=100)
    assert np.abs(read_rgb(tmp_path / "cyan.jpg").astype(int) - [0, 255, 255]).max() <= 3


def test_exif_orientation_is_applied(tmp_path):
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # stored lying on its side: rotate by 90 degrees clockwise to view
    PillowImage.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "x.png"), np.rot90(RGB, -1))


def test_rgb_profile_travels_and_a_foreign_one_does_not(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    _saved(tmp_path / "x.png", RGB, icc_profile=profile)
    image = read_image(tmp_path / "x.png")
    assert image.icc_profile == profile
    write_image(tmp_path / "y.webp", image)
    assert read_image(tmp_path / "y.webp").icc_profile == profile
    gray_profile = profile[:16] + b"GRAY" + profile[20:]
    _saved(tmp_path / "g.png", RGB[..., 0], icc_profile=gray_profile)
    assert read_image(tmp_path / "g.png").icc_profile is None


def test_float_samples_are_refused(tmp_path):
    PillowImage.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "x.tiff")


def test_animation_is_refused(tmp_path):
    frames = [PillowImage.fromarray(RGB + i) for i in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="several frames"):
        read_image(tmp_path / "x.gif")


def test_phone_photo_with_a_second_view_reads_its_picture(tmp_path):
    first, second = PillowImage.fromarray(RGB), PillowImage.fromarray(RGB[::-1])
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    assert np.abs(read_rgb(tmp_path / "x.jpg").astype(int) - RGB).max() < 16


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"hello", "none of BMP"), (b"\x89PNG\r\n\x1a\n", "none of BMP"), (b"%!PS-Adobe-3.0", "none of")],
)
def test_no_image(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    big = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / f"x{suffix}", big)
    whole = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read image"):
        read_image(tmp_path / f"x{suffix}")


def test_pixel_limit_names_both_numbers(tmp_path):
    write_image(tmp_path / "x.png", RGB)
    with pytest.raises(TooLargeError, match="13x9 is 117 pixels, more than the limit of 116"):
        read_image(tmp_path / "x.png", max_pixels=116)
    assert read_image(tmp_path / "x.png", max_pixels=117).width == 13


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, side):
    # A small file whose header claims to be huge: above Pillow's warning, and above its own limit.
    content = bytearray(_saved(tmp_path / "x.png", RGB).read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(TooLargeError, match="pixels"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tiff", ".bmp"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_input_error(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    _saved(path, RGB)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        rgb = read_rgb(path)
    except InputError as error:
        line = str(error)
    else:
        line = f"uint8 {rgb.shape[2]}"
        assert rgb.dtype == np.uint8
    assert line == "uint8 3" or (line.startswith("cannot read image") and "\n" not in line)


def test_reading_in_threads_leaves_the_warning_filters_alone(tmp_path):
    write_image(tmp_path / "x.png", RGB)
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_rgb(tmp_path / "x.png") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_list_images(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png"]
    assert list_images(str(tmp_path / "*.png")) == [tmp_path / "b.png"]
    assert [p.name for p in list_images(f"{tmp_path}/**/*.webp")] == ["d.webp"]
    assert list_images(tmp_path / "c.txt") == [tmp_path / "c.txt"]


def test_images_of_formats_that_are_not_read_are_told_apart_from_other_files(tmp_path):
    for name in ("a.png", "b.jfif", "c.HEIC", "d.avif", "e.txt", "f"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.jfif"]
    assert [p.name for p in list_other_images(tmp_path)] == ["c.HEIC", "d.avif"]
    assert list_other_images(f"{tmp_path}/c*") == [tmp_path / "c.HEIC"]


def test_list_images_finds_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "a[1].png").write_bytes(b"x")
    assert list_images(tmp_path / "a[1].png") == [tmp_path / "a[1].png"]


def test_list_images_of_nothing(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(InputError, match="none of its 1 entries"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        list_images(tmp_path / "nowhere")


def test_videos_where_images_are_wanted_come_with_what_makes_images_of_them(tmp_path):
    video = tmp_path / "my film.mp4"
    video.write_bytes(b"\0\0\0 ftypisom")
    for read in (lambda: list_images(tmp_path), lambda: read_image(video)):
        with pytest.raises(InputError) as refused:
            read()
        assert f"ffmpeg -i '{video}'" in refused.value.fix


@pytest.mark.parametrize("name", ["x", "x.exr", "x.png.txt"])
def test_unknown_suffix_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match=r"\.png"):
        check_writable(tmp_path / name)
    with pytest.raises(UsageError, match=r"\.png"):
        write_image(tmp_path / name, RGB)


@pytest.mark.parametrize("array", [RGB.astype(np.float32), RGB[..., :2], RGB[:0], RGB[0, 0]])
def test_write_refuses_what_is_no_image(tmp_path, array):
    with pytest.raises(InputError, match="uint8"):
        write_image(tmp_path / "x.png", array)
    assert list(tmp_path.iterdir()) == []


def test_format_limit_leaves_the_old_file(tmp_path):
    write_image(tmp_path / "x.webp", RGB)
    with pytest.raises(InputError, match="WEBP"):
        write_image(tmp_path / "x.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert np.array_equal(read_rgb(tmp_path / "x.webp"), RGB)
    assert [p.name for p in tmp_path.iterdir()] == ["x.webp"]
