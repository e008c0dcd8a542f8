"""Images through a bundle on whatever runtime is here."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from odm_deploy.engine import Engine
from odm_deploy.errors import InputError, UsageError
from odm_deploy.lowering.image_edges import add_uint8_io
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array
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


class Meeting(OnnxRuntime):
    """ONNX Runtime, whose runs only end when two of them are under way at once."""

    barrier = threading.Barrier(2)

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.barrier.wait(timeout=20)
        return super()._execute(feeds)


def test_as_many_images_are_under_way_at_once_as_there_are_contexts() -> None:
    runtime = Meeting.open_bytes(sr_model("float").SerializeToString(), ONE_THREAD)
    with Engine(runtime, contexts=2) as engine, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(engine.upscale, [image()] * 4))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_contexts_do_not_disturb_each_other(bundle: Path, runtime: str) -> None:
    pictures = [image(h=6 + seed, seed=seed) for seed in range(6)]
    with Engine.open(bundle, runtime, RuntimeOptions(threads=1, contexts=3)) as engine:
        alone = [engine.upscale(picture) for picture in pictures]
        with ThreadPoolExecutor(6) as pool:
            for index, result in enumerate(pool.map(engine.upscale, pictures * 3)):
                np.testing.assert_array_equal(result, alone[index % 6])
    with pytest.raises(UsageError, match="was closed"):
        engine.upscale(pictures[0])
    with pytest.raises(UsageError, match="was closed"):
        engine.runtime.another()


class Slow(OnnxRuntime):
    """ONNX Runtime that says when a run has begun, and ends it when it is told to."""

    begun, end = threading.Event(), threading.Event()

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.begun.set()
        assert self.end.wait(timeout=20)
        return super()._execute(feeds)


def test_closing_waits_for_the_image_under_way() -> None:
    engine = Engine(Slow.open_bytes(sr_model("float").SerializeToString(), ONE_THREAD))
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(engine.upscale, image())
        assert Slow.begun.wait(timeout=20)
        closing = pool.submit(engine.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.2)
        Slow.end.set()
        assert running.result(timeout=20).shape == (18, 28, 3)
        closing.result(timeout=20)


def test_tensors_of_other_libraries_go_in_and_come_out_in_place(bundle: Path) -> None:
    rgb = image()
    with Engine.open(bundle, "onnxruntime", ONE_THREAD) as engine:
        np.testing.assert_array_equal(engine.upscale(torch.from_numpy(rgb)), engine.upscale(rgb))
        batch = torch.from_numpy(rgb).permute(2, 0, 1)[None].float().contiguous()
        large: Any = torch.from_dlpack(engine.upscale_tensor(batch))
        (expected,) = engine.runtime.run({"image": batch.numpy()}).values()
    assert large.dtype == torch.float32
    np.testing.assert_array_equal(large.numpy(), expected)


def test_bytes_stay_bytes_in_a_model_that_takes_bytes(tmp_path: Path) -> None:
    import onnx_ir as ir

    graph = ir.from_proto(sr_model("float"))
    add_uint8_io(graph, "nhwc")
    (tmp_path / "model.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    with Engine.open(tmp_path, "onnxruntime", ONE_THREAD) as engine:
        large: Any = engine.upscale_tensor(image()[None])
        np.testing.assert_array_equal(large[0], engine.upscale(image()))
    assert large.dtype == np.uint8


def test_gpu_arguments_and_unreadable_tensors_are_refused_on_the_host(bundle: Path) -> None:
    batch = np.zeros((1, 3, 4, 4), np.float32)
    with Engine.open(bundle, "onnxruntime", ONE_THREAD) as engine:
        with pytest.raises(UsageError, match="GPU memory"):
            engine.upscale_tensor(batch, stream=5)
        with pytest.raises(UsageError, match="GPU memory"):
            engine.upscale_tensor(batch, out=batch)
        with pytest.raises(InputError, match="does not fit"):
            engine.upscale_tensor(batch.astype(np.uint8))
        unreadable: Any = [1, 2]
        with pytest.raises(InputError, match="cannot be read"):
            engine.upscale_tensor(unreadable)
        with pytest.raises(InputError, match="computes in host memory"):
            engine.upscale_tensor(OnDevice(batch))


class OnDevice:
    """A tensor that says it lies in the memory of a GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: object) -> Self:
        raise AssertionError("a runtime on the host must not touch it")


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
