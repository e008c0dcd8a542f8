"""The one description of a model's image edges: stated by the manifest, or told from a tensor."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from odm_deploy.bundle.image_format import ImageFormat
from odm_deploy.bundle.manifest import Manifest
from odm_deploy.errors import InputError

MANIFEST = Manifest({"name": "edsr", "scale": 2}, {}, {}, 9, {})
ALL = [ImageFormat(*each) for each in itertools.product(("float32", "uint8"), ("nchw", "nhwc"), ("rgb", "bgr"))]


def manifest_with(**onnx: Any) -> Manifest:
    return dataclasses.replace(MANIFEST, onnx=onnx)


@pytest.mark.parametrize("form", ALL)
def test_the_manifest_states_it(form: ImageFormat) -> None:
    assert ImageFormat.stated_in(manifest_with(io=form.type, layout=form.layout, order=form.order)) == form


def test_old_manifests_name_no_order_and_some_name_nothing() -> None:
    assert ImageFormat.stated_in(manifest_with(io="uint8", layout="nhwc")) == ImageFormat("uint8", "nhwc", "rgb")
    assert ImageFormat.stated_in(manifest_with(opset=20)) is None


@pytest.mark.parametrize("wrong", [{"io": "int4"}, {"io": "uint8", "layout": "hwc"}, {"io": "uint8", "order": "gbr"}])
def test_formats_that_there_are_not_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no known format of images"):
        ImageFormat.stated_in(manifest_with(**wrong))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("input", (None, 3, None, None), ImageFormat("uint8", "nchw", "rgb")),
        ("input_bgr", (None, 3, 8, 3), ImageFormat("uint8", "nchw", "bgr")),
        ("input_bgr", (None, None, None, 3), ImageFormat("uint8", "nhwc", "bgr")),
        ("input", (1, 16, 16, 3), ImageFormat("uint8", "nhwc", "rgb")),
    ],
)
def test_without_a_manifest_name_and_shape_tell(
    name: str, shape: tuple[int | None, ...], expected: ImageFormat
) -> None:
    assert ImageFormat.told_from(name, np.dtype(np.uint8), shape) == expected


@pytest.mark.parametrize("form", ALL)
def test_images_go_there_and_come_back(form: ImageFormat) -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 5)).astype(np.float32)
    held = form.from_rgb(rgb)
    assert held.flags.c_contiguous
    assert held.dtype == form.type
    assert held.shape == ((2, 3, 4, 5) if form.layout == "nchw" else (2, 4, 5, 3))
    first = held[:, 0] if form.layout == "nchw" else held[..., 0]
    expected = np.rint(rgb) if form.type == "uint8" else rgb
    np.testing.assert_array_equal(first, expected[:, 0 if form.order == "rgb" else 2])
    np.testing.assert_array_equal(form.as_rgb(held), expected)
