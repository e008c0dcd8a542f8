"""What a manifest says of its model, held against the model: whoever upscales goes by it."""

from __future__ import annotations

from typing import Any

import pytest

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import ONNX_FILE, Manifest
from odm_deploy.lowering.receptive_field import receptive_radius_px
from odm_deploy.proof.verify import contradictions
from tests.factories import lowered, tiny_model


@pytest.fixture(scope="module")
def radius():
    return receptive_radius_px(lowered(tiny_model()))


def found(folder, **stated: Any):
    (folder / ONNX_FILE).write_bytes(lowered(tiny_model()).SerializeToString())
    keys: dict[str, Any] = {"network": {"scale": 2}, "checkpoint": {}, "onnx": {}, "layers": {}, **stated}
    Manifest(**keys).write(folder)
    return contradictions(Bundle.open(folder), tiny_model())


def test_the_truth_and_what_is_on_the_safe_side_of_it_pass(tmp_path, radius):
    assert found(tmp_path, receptive_radius_px=radius) == []
    assert found(tmp_path, receptive_radius_px=radius + 5) == []
    assert found(tmp_path, receptive_radius_px=None) == []


def test_a_radius_one_pixel_too_small_is_named(tmp_path, radius):
    (clause,) = found(tmp_path, receptive_radius_px=radius - 1)
    assert str(radius - 1) in clause
    assert f"sees {radius} pixels far" in clause


def test_another_scale_is_named(tmp_path, radius):
    assert found(tmp_path, receptive_radius_px=radius, network={"scale": 4}) == [
        "the manifest says scale 4, the model's is 2"
    ]


def test_a_graph_alone_says_nothing(tmp_path):
    path = tmp_path / ONNX_FILE
    path.write_bytes(lowered(tiny_model()).SerializeToString())
    assert contradictions(Bundle.open(path), tiny_model()) == []
