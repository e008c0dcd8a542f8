"""golden.json: its images are the same forever, what is written is read, and damaged records are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from odm_deploy.bundle.golden import Golden, GoldenImage, golden_images, hash_of, read_golden
from odm_deploy.bundle.manifest import GOLDEN_FILE
from odm_deploy.errors import InputError

EXPECTED_INPUTS = ["db0efa695cca", "a4e5a04860b9", "2fab77f8d287"]

RECORD = Golden(
    {"head.0": "a hash", "": "another"},
    [
        GoldenImage(name, list(image.shape), hash_of(image), "its output's hash", {"head.0": "its codes' hash"})
        for name, image in golden_images().items()
    ],
)


def test_images_are_fixed_and_different():
    images = golden_images()
    assert all(image.shape == (1, 3, 24, 32) and image.dtype == np.uint8 for image in images.values())
    assert set(np.unique(images["black and white"])) == {0, 255}
    assert len(np.unique(images["noise"])) == 256
    # Bundles out there hold these hashes: the images must never change.
    assert [hash_of(image)[:12] for image in images.values()] == EXPECTED_INPUTS


def test_what_is_written_is_read(tmp_path):
    RECORD.write(tmp_path)
    assert read_golden(tmp_path) == RECORD
    assert read_golden(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda document: document.update(version=9), "its version is 9"),
        (lambda document: document.pop("images"), "KeyError"),
        (lambda document: document["images"][0].update(input="00"), "not those this program makes"),
        (lambda document: document["images"][0].update(colour="00"), "TypeError"),
    ],
)
def test_damaged_records_are_refused(tmp_path, change, why):
    RECORD.write(tmp_path)
    document = json.loads((tmp_path / GOLDEN_FILE).read_text())
    change(document)
    (tmp_path / GOLDEN_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=why):
        read_golden(tmp_path)
