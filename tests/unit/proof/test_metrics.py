"""PSNR and SSIM: by hand, against scikit-image, and against the published bicubic baseline."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.resize import imresize
from odm_deploy.proof.metrics import psnr_y, ssim_y


def _noisy_pair(seed: int, height: int = 40, width: int = 33, spread: int = 20):
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(height), np.arange(width)) * 2 % 256
    hr = np.clip(smooth[..., None] + rng.integers(-spread, spread + 1, (height, width, 3)), 0, 255).astype(np.uint8)
    sr = np.clip(hr.astype(int) + rng.integers(-spread, spread + 1, hr.shape), 0, 255).astype(np.uint8)
    return sr, hr


def test_psnr_y_of_one_wrong_pixel_by_hand():
    hr = np.full((20, 10, 3), 100, np.uint8)
    sr = hr.copy()
    sr[7, 5] = (110, 90, 100)  # luma is off by 10 * (65.738 - 129.057) / 256 = -2.4734 in one of 12 * 2 pixels
    assert psnr_y(sr, hr, 4) == pytest.approx(10 * math.log10(255**2 / (2.473398**2 / 24)), abs=1e-5)


def test_no_wrap_around_at_the_ends_of_the_range():
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr_y(white, black, 0) == pytest.approx(-20 * math.log10(219.859 / 256))
    assert psnr_y(black, white, 0) == psnr_y(white, black, 0)


def test_errors_in_the_border_do_not_count():
    sr, hr = _noisy_pair(1)
    sr[4:-4, 4:-4] = hr[4:-4, 4:-4]
    assert psnr_y(sr, hr, 4) == math.inf
    assert ssim_y(sr, hr, 4) == pytest.approx(1.0)
    assert psnr_y(sr, hr, 3) < 100


def test_identical_images_have_infinite_psnr_and_a_similarity_of_one():
    sr, _ = _noisy_pair(2)
    assert psnr_y(sr, sr, 4) == math.inf
    assert ssim_y(sr, sr, 4) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(19, 40), st.integers(19, 40), st.integers(0, 4))
def test_ssim_equals_scikit_image(seed, height, width, shave):
    sr, hr = _noisy_pair(seed, height, width)
    inside = slice(shave, height - shave), slice(shave, width - shave)
    y_sr, y_hr = (16 + (i[inside].astype(float) / 255) @ [65.481, 128.553, 24.966] for i in (sr, hr))
    expected = structural_similarity(
        y_sr, y_hr, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim_y(sr, hr, shave) == pytest.approx(expected, abs=1e-12)


def test_psnr_equals_scikit_image():
    sr, hr = _noisy_pair(3)
    y_sr, y_hr = (i.astype(float) @ np.array([65.738, 129.057, 25.064]) / 256 for i in (sr, hr))
    assert psnr_y(sr, hr, 0) == pytest.approx(peak_signal_noise_ratio(y_hr, y_sr, data_range=255), abs=1e-9)


def test_ssim_of_two_constants_by_hand():
    # No structure: only the luminance term is left, (2ab + C1) / (a^2 + b^2 + C1) of luma 16 + 219 v / 255.
    black, gray = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 51, np.uint8)
    a, b, c1 = 16.0, 16 + 219 / 5, 2.55**2
    assert ssim_y(black, gray, 0) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)


def test_which_of_two_images_is_the_truth_makes_no_difference():
    sr, hr = _noisy_pair(4)
    assert psnr_y(sr, hr, 2) == psnr_y(hr, sr, 2)
    assert ssim_y(sr, hr, 2) == pytest.approx(ssim_y(hr, sr, 2), abs=1e-15)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_refuses_images_of_different_size(metric):
    with pytest.raises(InputError, match=r"\[4, 4, 3\].*\[4, 5, 3\]"):
        metric(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8), 0)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
@pytest.mark.parametrize("other", [np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), np.uint8)])
def test_refuses_other_arrays(metric, other):
    with pytest.raises(InputError, match="uint8"):
        metric(other, other, 0)


def test_refuses_images_too_small_for_the_border():
    image = np.zeros((8, 30, 3), np.uint8)
    with pytest.raises(InputError, match="30x8 pixels without a border of 4"):
        psnr_y(image, image, 4)
    with pytest.raises(InputError, match="11x11"):
        ssim_y(image, image, 0)


def test_published_bicubic_baseline_of_set5(data_root):
    # x4, luma: 28.42 dB and 0.8104 in the literature.
    folder = data_root / "benchmark" / "Set5"
    psnr, ssim = [], []
    for path in list_images(folder / "HR"):
        sr = imresize(read_rgb(folder / f"LR_bicubic/X4/{path.stem}x4.png"), 4)
        hr = read_rgb(path)[: sr.shape[0], : sr.shape[1]]
        psnr.append(psnr_y(sr, hr, 4))
        ssim.append(ssim_y(sr, hr, 4))
    assert len(psnr) == 5
    assert np.mean(psnr) == pytest.approx(28.42, abs=0.01)
    assert np.mean(ssim) == pytest.approx(0.8104, abs=0.001)
