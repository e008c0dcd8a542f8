"""Images and their ground truth: finding both, cropping the truth, and saying what does not fit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.pairs import SampleFile, find_pairs, find_samples
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
    pairs = find_pairs(root, 2)
    assert [(pair.name, pair.scale) for pair in pairs] == [("a", 2), ("b", 2)]
    assert [pair.low for pair in pairs] == [root / "LR_bicubic/X2/ax2.png", root / "LR_bicubic/X2/bx2.png"]


def test_ground_truth_is_cropped_to_fit_and_gray_has_three_channels(root):
    gray, colour = (pair.load() for pair in find_pairs(root, 2))
    assert [gray.low.shape, gray.high.shape] == [(11, 14, 3), (22, 28, 3)]
    assert [colour.low.shape, colour.high.shape] == [(12, 15, 3), (24, 30, 3)]
    # The fixture's partners are the top left corner of the truth: both must come from the file, uncropped there.
    assert np.array_equal(colour.low, colour.high[:12, :15])
    assert np.array_equal(gray.high[..., 0], gray.high[..., 2])


def test_partners_are_made_where_absent(root):
    file = find_pairs(root, 3)[0]
    assert file.low is None
    pair = file.load()
    assert (pair.low.shape, pair.high.shape) == ((7, 9, 3), (21, 27, 3))
    assert np.array_equal(pair.low, downscale(pair.high, 3)[0])


def test_missing_partner_is_named(root):
    (root / "LR_bicubic/X2/bx2.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images.*bx2\.png"):
        find_pairs(root, 2)


def test_size_that_does_not_belong_names_both(root):
    shutil.copytree(root / "LR_bicubic/X2", root / "LR_bicubic/X4")
    for name in "ab":
        (root / f"LR_bicubic/X4/{name}x2.png").rename(root / f"LR_bicubic/X4/{name}x4.png")
    with pytest.raises(InputError, match="14x11 pixels, not 7x5"):
        find_pairs(root, 4)[0].load()


def test_a_folder_that_is_no_benchmark_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_pairs(tmp_path / "nowhere", 2)
    with pytest.raises(InputError, match="no folder HR"):
        find_pairs(tmp_path, 2)
    (tmp_path / "HR").mkdir()
    with pytest.raises(InputError, match="no images"):
        find_pairs(tmp_path, 2)


def test_a_scale_below_1_is_refused(root):
    with pytest.raises(UsageError, match="scale 0"):
        find_pairs(root, 0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pairs_of_the_public_sets_fit(data_root, scale):
    for name, count in (("Set5", 5), ("Set14", 14)):
        pairs = find_pairs(data_root / "benchmark" / name, scale)
        assert len(pairs) == count
        for pair in (file.load() for file in pairs):
            assert pair.high.shape == (pair.low.shape[0] * scale, pair.low.shape[1] * scale, 3)


def image(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def samples_root(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"HR/{name}.png", image(21, 26, 9))
        write_image(tmp_path / f"LR_bicubic/X4/{name}x4.png", image(5, 6))
    return tmp_path


def test_ground_truth_of_a_benchmark_set_is_found_by_itself_and_cropped(samples_root):
    found = find_samples(samples_root / "LR_bicubic/X4", None, 4)
    assert [sample.name for sample in found] == ["a", "b"]
    sample = found[0].load()
    assert sample.low.shape == (5, 6, 3)
    assert sample.truth.shape == (20, 24, 3)
    assert (sample.truth == 9).all()


def test_limit_takes_the_first(samples_root):
    assert [sample.name for sample in find_samples(samples_root / "LR_bicubic/X4", None, 4, limit=1)] == ["a"]


def test_images_elsewhere_have_no_ground_truth(samples_root):
    found = find_samples(samples_root / "HR", None, 4)
    assert [(sample.name, sample.truth) for sample in found] == [("a", None), ("b", None)]
    assert found[0].load().truth is None


def test_named_folder_holds_truth_under_either_name(samples_root):
    write_image(samples_root / "truth/ax4.png", image(20, 24, 7))
    write_image(samples_root / "truth/b.png", image(20, 24, 8))
    found = find_samples(samples_root / "LR_bicubic/X4", samples_root / "truth", 4)
    assert [sample.truth.name for sample in found] == ["ax4.png", "b.png"]


def test_missing_truth_is_an_error_only_where_a_folder_was_named(samples_root):
    (samples_root / "HR/b.png").unlink()
    assert [sample.truth is None for sample in find_samples(samples_root / "LR_bicubic/X4", None, 4)] == [False, True]
    with pytest.raises(InputError, match=r"no ground truth for .*bx4\.png"):
        find_samples(samples_root / "LR_bicubic/X4", samples_root / "HR", 4)


def test_truth_too_small_for_the_scale_is_refused_with_both_sizes(samples_root):
    sample = SampleFile("a", samples_root / "LR_bicubic/X4/ax4.png", samples_root / "LR_bicubic/X4/bx4.png", 4)
    with pytest.raises(InputError, match="it is 6x5, x4 needs 24x20"):
        sample.load()


def test_truth_of_another_scale_is_refused_and_not_cropped(samples_root):
    sample = SampleFile("a", samples_root / "LR_bicubic/X4/ax4.png", samples_root / "HR/a.png", 2)
    with pytest.raises(InputError, match="it is 26x21, x2 needs 12x10; check the scale"):
        sample.load()


@pytest.mark.parametrize(("height", "width"), [(23, 27), (24, 24), (20, 28)])
def test_truth_may_exceed_the_input_by_less_than_the_scale(samples_root, height, width):
    write_image(samples_root / "truth/a.png", image(height, width))
    sample = SampleFile("a", samples_root / "LR_bicubic/X4/ax4.png", samples_root / "truth/a.png", 4)
    if (height, width) == (23, 27):
        assert sample.load().truth.shape == (20, 24, 3)
    else:
        with pytest.raises(InputError, match=f"it is {width}x{height}, x4 needs 24x20"):
            sample.load()


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(InputError):
        find_samples(tmp_path, None, 4)
