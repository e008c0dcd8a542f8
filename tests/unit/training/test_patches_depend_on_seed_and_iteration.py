import numpy as np
import pytest
import torch
from PIL import Image

from odm_deploy.errors import InputError
from odm_deploy.imaging.resize import downscale
from training.data import (
    CALIBRATION_STREAM,
    ImagePair,
    ImagePool,
    find_images,
    load_pairs,
    split_validation,
    to_network,
)


@pytest.fixture
def pool():
    random = np.random.default_rng(1)
    highs = [random.integers(0, 256, (rows, columns, 3), dtype=np.uint8) for rows, columns in ((40, 52), (36, 30))]
    pairs = tuple(ImagePair(str(i), *downscale(high, 2)) for i, high in enumerate(highs))
    return ImagePool(pairs, scale=2, patch=9, seed=3)


def test_a_batch_depends_on_seed_and_iteration_alone(pool):
    first = pool.batch(17, 4)
    for iteration in (3, 4, 5):
        pool.batch(iteration, 4)
    again = pool.batch(17, 4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], pool.batch(18, 4)[0])
    assert not torch.equal(first[0], pool.batch(17, 4, CALIBRATION_STREAM)[0])
    other = ImagePool(pool.pairs, pool.scale, pool.patch, seed=4)
    assert not torch.equal(first[0], other.batch(17, 4)[0])


def test_low_and_high_patches_show_the_same_place_in_the_same_pose(pool):
    """Every low patch, in one of eight poses, is found in a low image, and the high patch lies at twice that place."""
    low, high = pool.batch(0, 6)
    assert low.shape == (6, 3, 9, 9)
    assert high.shape == (6, 3, 18, 18)
    assert low.dtype == torch.uint8
    assert torch.equal(to_network(low, "cpu"), low.float())
    poses = set()
    for small, large in zip(low.numpy().transpose(0, 2, 3, 1), high.numpy().transpose(0, 2, 3, 1), strict=True):
        found = [
            (pose, pair, top, left)
            for pose in range(8)
            for pair in pool.pairs
            for top in range(pair.low.shape[0] - 8)
            for left in range(pair.low.shape[1] - 8)
            if np.array_equal(posed(small, pose), pair.low[top : top + 9, left : left + 9])
        ]
        assert len(found) == 1
        pose, pair, top, left = found[0]
        expected = pair.high[2 * top : 2 * top + 18, 2 * left : 2 * left + 18]
        assert np.array_equal(posed(large, pose), expected)
        poses.add(pose)
    assert len(poses) > 1


def posed(image, pose):
    """Undo one of the eight flips and transpositions."""
    image = image.transpose(1, 0, 2) if pose & 4 else image
    image = image[:, ::-1] if pose & 2 else image
    return image[::-1] if pose & 1 else image


def test_validation_images_are_spread_and_never_trained_on():
    train, held_back = split_validation(list(range(100)), 4)
    assert held_back == [0, 25, 50, 75]
    assert sorted(train + held_back) == list(range(100))


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        find_images([tmp_path])
    with pytest.raises(InputError, match=r"data\.folders is empty"):
        find_images([])


def test_small_images_are_refused_or_skipped(tmp_path):
    for name, side in (("a", 40), ("b", 16)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    paths = find_images([tmp_path])
    with pytest.raises(InputError, match=r"b\.png is too small: 16x16 against a target patch of 18x18"):
        load_pairs(paths, 2, 9)
    pairs, skipped = load_pairs(paths, 2, 9, skip_small=True)
    assert ([pair.name for pair in pairs], skipped) == (["a.png"], 1)
