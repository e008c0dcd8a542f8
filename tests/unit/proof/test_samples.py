"""Finding the images to compare on, and their ground truth."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.imaging.writing import write_image
from odm_deploy.proof.samples import SampleFile, find_samples


def image(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"HR/{name}.png", image(21, 26, 9))
        write_image(tmp_path / f"LR_bicubic/X4/{name}x4.png", image(5, 6))
    return tmp_path


def test_ground_truth_of_a_benchmark_set_is_found_by_itself_and_cropped(root):
    found = find_samples(root / "LR_bicubic/X4", None, 4)
    assert [sample.name for sample in found] == ["a", "b"]
    sample = found[0].load(4)
    assert sample.low.shape == (5, 6, 3)
    assert sample.truth.shape == (20, 24, 3)
    assert (sample.truth == 9).all()


def test_limit_takes_the_first(root):
    assert [sample.name for sample in find_samples(root / "LR_bicubic/X4", None, 4, limit=1)] == ["a"]


def test_images_elsewhere_have_no_ground_truth(root):
    found = find_samples(root / "HR", None, 4)
    assert [(sample.name, sample.truth) for sample in found] == [("a", None), ("b", None)]
    assert found[0].load(4).truth is None


def test_named_folder_holds_truth_under_either_name(root):
    write_image(root / "truth/ax4.png", image(20, 24, 7))
    write_image(root / "truth/b.png", image(20, 24, 8))
    found = find_samples(root / "LR_bicubic/X4", root / "truth", 4)
    assert [sample.truth.name for sample in found] == ["ax4.png", "b.png"]


def test_missing_truth_is_an_error_only_where_a_folder_was_named(root):
    (root / "HR/b.png").unlink()
    assert [sample.truth is None for sample in find_samples(root / "LR_bicubic/X4", None, 4)] == [False, True]
    with pytest.raises(InputError, match=r"no ground truth for .*bx4\.png"):
        find_samples(root / "LR_bicubic/X4", root / "HR", 4)


def test_truth_too_small_for_the_scale_is_refused_with_both_sizes(root):
    sample = SampleFile("a", root / "LR_bicubic/X4/ax4.png", root / "LR_bicubic/X4/bx4.png")
    with pytest.raises(InputError, match="it is 6x5, x4 needs 24x20"):
        sample.load(4)


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(InputError):
        find_samples(tmp_path, None, 4)
