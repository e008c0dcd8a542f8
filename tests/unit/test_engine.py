"""Images through a bundle on whatever runtime is here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from odm_deploy.engine import Engine
from odm_deploy.errors import InputError
from odm_deploy.runtimes.base import RuntimeOptions
from tests.sr_graphs import sr_model

ONE_THREAD = RuntimeOptions(threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(sr_model("float").SerializeToString())
    return tmp_path


def image(h: int = 9, w: int = 14, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("runtime", [None, "onnxruntime", "openvino"])
def test_an_image_is_upscaled_rounded_and_clamped(bundle: Path, runtime: str | None) -> None:
    rgb = image()
    feed = {"image": rgb.transpose(2, 0, 1)[None].astype(np.float32)}
    (expected,) = ReferenceEvaluator(sr_model("float")).run(None, feed)
    assert expected.min() < 0, "the network must need clamping for this test to mean anything"
    with Engine.open(bundle, runtime, ONE_THREAD) as engine:
        result = engine.upscale(rgb)
        assert engine.describe()["runtime"] == (runtime or engine.runtime.name)
    assert result.dtype == np.uint8
    assert result.shape == (18, 28, 3)
    assert result.flags.c_contiguous
    want = np.rint(expected[0].clip(0, 255)).transpose(1, 2, 0)
    assert np.abs(result - want).max() <= 1
    assert np.mean(result != want) < 0.01


def test_threads_may_share_an_engine(bundle: Path) -> None:
    pictures = [image(h=6 + seed, seed=seed) for seed in range(6)]
    with Engine.open(bundle, options=ONE_THREAD) as engine:
        alone = [engine.upscale(picture) for picture in pictures]
        with ThreadPoolExecutor(6) as pool:
            for index, result in enumerate(pool.map(engine.upscale, pictures * 3)):
                np.testing.assert_array_equal(result, alone[index % 6])


@pytest.mark.parametrize(
    "picture",
    [
        image().astype(np.float32),
        image()[:, :, 0],
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(bundle: Path, picture: np.ndarray) -> None:
    with Engine.open(bundle, options=ONE_THREAD) as engine, pytest.raises(InputError, match="uint8"):
        engine.upscale(picture)
