"""Benchmark sets: finding pairs, cropping the ground truth, and saying what does not fit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.datasets import BenchmarkSet
from odm_deploy.imaging.resize import downscale
from odm_deploy.imaging.writing import write_image


@pytest.fixture
def root(tmp_path):
    """Two images whose sizes no scale divides, one of them gray, with partners at x2."""
    rng = np.random.default_rng(5)
    images = {
        "b": rng.integers(0, 256, (25, 31, 3), dtype=np.uint8),
        "a": rng.integers(0, 256, (23, 29), dtype=np.uint8),
    }
    for name, image in images.items():
        write_image(tmp_path / f"MySet/HR/{name}.png", image)
        write_image(tmp_path / f"MySet/LR_bicubic/X2/{name}x2.png", image[: image.shape[0] // 2, : image.shape[1] // 2])
    return tmp_path / "MySet"


def test_pairs_are_sorted_and_named(root):
    pairs = BenchmarkSet.from_folder(root, 2)
    assert (pairs.name, pairs.scale, len(pairs)) == ("MySet", 2, 2)
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert [pair.lr_path for pair in pairs] == [root / "LR_bicubic/X2/ax2.png", root / "LR_bicubic/X2/bx2.png"]


def test_ground_truth_is_cropped_to_fit_and_gray_has_three_channels(root):
    gray, colour = (pair.load() for pair in BenchmarkSet.from_folder(root, 2))
    assert [image.shape for image in gray] == [(11, 14, 3), (22, 28, 3)]
    assert [image.shape for image in colour] == [(12, 15, 3), (24, 30, 3)]
    # The fixture's partners are the top left corner of the truth: both must come from the file, uncropped there.
    assert np.array_equal(colour[0], colour[1][:12, :15])
    assert np.array_equal(gray[1][..., 0], gray[1][..., 2])


def test_partners_are_made_where_absent(root):
    pair = next(iter(BenchmarkSet.from_folder(root, 3)))
    assert pair.lr_path is None
    low, high = pair.load()
    assert (low.shape, high.shape) == ((7, 9, 3), (21, 27, 3))
    assert np.array_equal(low, downscale(high, 3)[0])


def test_missing_partner_is_named(root):
    (root / "LR_bicubic/X2/bx2.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images.*bx2\.png"):
        BenchmarkSet.from_folder(root, 2)


def test_size_that_does_not_belong_names_both(root):
    shutil.copytree(root / "LR_bicubic/X2", root / "LR_bicubic/X4")
    for name in "ab":
        (root / f"LR_bicubic/X4/{name}x2.png").rename(root / f"LR_bicubic/X4/{name}x4.png")
    with pytest.raises(InputError, match="14x11 pixels, not 7x5"):
        next(iter(BenchmarkSet.from_folder(root, 4))).load()


def test_no_set(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        BenchmarkSet.from_folder(tmp_path / "nowhere", 2)
    with pytest.raises(InputError, match="no folder HR"):
        BenchmarkSet.from_folder(tmp_path, 2)
    (tmp_path / "HR").mkdir()
    with pytest.raises(InputError, match="no images"):
        BenchmarkSet.from_folder(tmp_path, 2)


def test_senseless_scale(root):
    with pytest.raises(UsageError, match="scale 0"):
        BenchmarkSet.from_folder(root, 0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_public_sets(data_root, scale):
    for name, count in (("Set5", 5), ("Set14", 14)):
        pairs = BenchmarkSet.from_folder(data_root / "benchmark" / name, scale)
        assert len(pairs) == count
        for pair in pairs:
            low, high = pair.load()
            assert high.shape == (low.shape[0] * scale, low.shape[1] * scale, 3)
