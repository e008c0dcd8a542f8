"""The cache of training images: the same pixels, decoded once, and made again when an image changes."""

import numpy as np
import pytest
from PIL import Image

from odm_deploy.errors import InputError
from odm_deploy.imaging.resize import downscale
from training import image_cache
from training.data import ImagePool, load_pairs
from training.image_cache import low_and_high


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (31, 42, 3), np.uint8)
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ODM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cached_pixels_are_those_of_the_image(photo, cache):
    expected = downscale(np.asarray(Image.open(photo)), 2)
    for _ in range(2):
        assert all(np.array_equal(*pair) for pair in zip(low_and_high(photo, 2), expected, strict=True))
    assert len(list(cache.iterdir())) == 2


def test_an_image_is_decoded_once_and_again_when_it_changes(photo, cache, monkeypatch):
    low_and_high(photo, 2)
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "read_rgb", lambda path: pytest.fail(f"{path} is read again"))
        low_and_high(photo, 2)
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(photo)
    low, high = low_and_high(photo, 2)
    assert (low.shape, high.shape, high.max()) == ((10, 12, 3), (20, 24, 3), 0)


def test_batches_are_the_same_with_a_cache(photo, tmp_path, monkeypatch):
    pools = []
    for folder in ("", str(tmp_path / "cache")):
        monkeypatch.setenv("ODM_CACHE", folder)
        pools.append(ImagePool(load_pairs([photo], 2, 8)[0], 2, 8, seed=1))
    for first, second in zip(*(pool.batch(3, 4) for pool in pools), strict=True):
        assert first.equal(second)


def test_images_smaller_than_a_pixel_can_be_skipped(photo, cache):
    tiny = photo.parent / "tiny.png"
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tiny)
    pairs, skipped = load_pairs([photo, tiny], 4, 4, skip_small=True)
    assert ([pair.name for pair in pairs], skipped) == (["photo.png"], 1)


def test_a_damaged_cache_is_named(photo, cache):
    low_and_high(photo, 2)
    for entry in cache.iterdir():
        entry.write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"empty {cache}"):
        low_and_high(photo, 2)
