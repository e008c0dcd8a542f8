import numpy as np
import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import choose_images
from odm_deploy.imaging.resize import downscale
from odm_deploy.imaging.writing import write_image
from odm_deploy.quantization.calibration_images import CalibrationImages


@pytest.fixture
def picture(tmp_path):
    """A 50 x 40 picture and its file."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    return pixels, tmp_path / "a.png"


def test_high_resolution_images_are_downscaled_to_what_the_network_sees(picture):
    pixels, path = picture
    (image,) = CalibrationImages([path], downscale=4)
    expected, _ = downscale(pixels, 4)
    assert (image.dtype, image.shape) == (torch.float32, (1, 3, 12, 10))
    np.testing.assert_array_equal(image[0].numpy(), expected.transpose(2, 0, 1))


def test_network_inputs_are_taken_as_they_are(picture):
    pixels, path = picture
    (image,) = CalibrationImages([path], downscale=1)
    np.testing.assert_array_equal(image[0].numpy(), pixels.transpose(2, 0, 1))


def test_the_middle_of_large_images_is_taken(picture):
    pixels, path = picture
    (image,) = CalibrationImages([path], downscale=1, crop_px=20)
    np.testing.assert_array_equal(image[0].numpy(), pixels[15:35, 10:30].transpose(2, 0, 1))
    (small,) = CalibrationImages([path], downscale=2, crop_px=20)
    assert small.shape == (1, 3, 20, 20)


def test_how_large_inputs_are_is_told_by_the_headers_of_what_can_be_read(picture, tmp_path):
    pixels, path = picture
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:12])
    paths = [tmp_path / "missing.png", tmp_path / "broken.png", tmp_path, path]
    assert CalibrationImages(paths, downscale=1).largest_side() == min(pixels.shape[:2])
    assert CalibrationImages(paths, downscale=4).largest_side() == min(pixels.shape[:2]) // 4
    assert CalibrationImages(paths, downscale=1, crop_px=20).largest_side() == 20
    assert CalibrationImages(paths[:3]).largest_side() == 0


def test_files_are_read_when_their_turn_comes(picture, tmp_path):
    _, path = picture
    images = CalibrationImages([path, tmp_path / "missing.png"], downscale=1)
    assert len(images) == 2
    stream = iter(images)
    next(stream)
    with pytest.raises(InputError, match=r"missing\.png"):
        next(stream)


def test_an_image_too_small_to_downscale_is_named(tmp_path):
    write_image(tmp_path / "tiny.png", np.zeros((3, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"cannot calibrate on .*tiny\.png"):
        list(CalibrationImages([tmp_path / "tiny.png"], downscale=4))


@pytest.mark.parametrize(("count", "expected"), [(1, "0"), (2, "05"), (3, "036"), (99, "0123456789")])
def test_images_are_chosen_evenly_spaced(tmp_path, count, expected):
    for number in range(10):
        write_image(tmp_path / f"{number}.png", np.zeros((2, 2, 3), np.uint8))
    assert "".join(path.stem for path in choose_images(tmp_path, count)) == expected
