"""PSNR and SSIM over a set: every image once, and their means."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import ImagePair
from odm_deploy.proof.evaluation import Quality, evaluate
from odm_deploy.proof.metrics import psnr_y, ssim_y

SCALE = 2


def upscaled(images):
    return images.repeat(SCALE, 2).repeat(SCALE, 3) + 0.4


def pair(name, height, width, seed):
    low = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ImagePair(name, low, low.repeat(SCALE, 0).repeat(SCALE, 1) ^ 3)


def test_every_image_is_measured_and_means_are_over_images():
    pairs = [pair("a", 12, 15, 0), pair("b", 20, 11, 1)]
    found = evaluate(upscaled, iter(pairs), SCALE)
    truths = [each.high for each in pairs]
    # 0.4 is rounded away.
    assert found.psnr_y_db == [psnr_y(truth ^ 3, truth, SCALE) for truth in truths]
    assert found.ssim_y == [ssim_y(truth ^ 3, truth, SCALE) for truth in truths]
    assert found.mean.psnr_y_db == pytest.approx(sum(found.psnr_y_db) / 2)
    assert found.to_dict() == {"psnr_y_db": found.mean.psnr_y_db, "ssim_y": found.mean.ssim_y}


def test_without_ground_truth_there_are_no_figures():
    assert Quality().to_dict() == {"psnr_y_db": None, "ssim_y": None}


def test_an_output_of_another_size_is_refused():
    with pytest.raises(InputError, match="cannot compare two images"):
        evaluate(lambda images: images, [pair("a", 12, 15, 0)], SCALE)
