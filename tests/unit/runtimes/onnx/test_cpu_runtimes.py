"""ONNX Runtime and OpenVINO behind the common protocol, against ONNX's own reference evaluator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from odm_deploy.errors import InputError, UsageError
from odm_deploy.lowering.image_edges import add_uint8_io
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.options import RuntimeOptions
from tests.sr_graphs import FORMS, Form, random_images, sr_model

RUNTIMES: list[type[Runtime]] = [OnnxRuntime, OpenVinoCpu]
ONE_THREAD = RuntimeOptions(threads=1)

pytestmark = pytest.mark.parametrize("kind", RUNTIMES, ids=lambda kind: kind.name)


def opened(kind: type[Runtime], model: onnx.ModelProto, options: RuntimeOptions = ONE_THREAD) -> Runtime:
    return kind.open_bytes(model.SerializeToString(), options)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_codes_are_those_of_the_reference(kind: type[Runtime], form: Form) -> None:
    model, images = sr_model(form, taps=True), random_images(2)
    expected = ReferenceEvaluator(model).run(None, {"image": images})
    with opened(kind, model) as runtime:
        results = runtime.run({"image": images})
    assert list(results) == [output.name for output in model.graph.output]
    for (name, result), want in zip(results.items(), expected, strict=True):
        assert result.dtype == want.dtype, name
        # Single codes may flip where a sum rounds differently; each is one step of 1.5 and small weights.
        assert np.mean(np.abs(result.astype(np.float32) - want) > 0.01) < 0.02, name


def test_io_is_described(kind: type[Runtime]) -> None:
    with opened(kind, sr_model(taps=True)) as runtime:
        (image,) = runtime.inputs
        assert (image.name, image.dtype, image.shape) == ("image", np.float32, (None, 3, None, None))
        assert [info.name for info in runtime.outputs] == ["sr", "body.codes_x", "tail.codes_x"]
        assert runtime.outputs[1].dtype == np.int8
        facts = runtime.describe()
    assert facts["runtime"] == kind.name
    assert facts["threads"] == 1
    assert facts["device"].endswith("1 thread")


def test_results_belong_to_the_caller(kind: type[Runtime]) -> None:
    with opened(kind, sr_model()) as runtime:
        first = runtime.run({"image": random_images(seed=1)})["sr"]
        kept = first.copy()
        runtime.run({"image": random_images(seed=2)})
        np.testing.assert_array_equal(first, kept)
        first[:] = 0


def test_threads_may_share_a_runtime(kind: type[Runtime]) -> None:
    images = [random_images(h=8 + seed, seed=seed) for seed in range(8)]
    with opened(kind, sr_model()) as runtime:
        alone = [runtime.upscale(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(runtime.upscale, images * 4))
    for index, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[index % 8])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "not the inputs"),
        ({"picture": random_images()}, "picture"),
        ({"image": random_images().astype(np.float64)}, "float64"),
        ({"image": random_images()[0]}, "3x12x10"),
        ({"image": random_images()[:, :2]}, "1x2x12x10"),
        ({"image": [1, 2]}, "list"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(kind: type[Runtime], feeds: dict[str, object], message: str) -> None:
    with opened(kind, sr_model()) as runtime, pytest.raises(InputError, match=message):
        runtime.run(feeds)  # type: ignore[arg-type]


def test_tensors_of_other_libraries_are_taken(kind: type[Runtime]) -> None:
    images = random_images()
    with opened(kind, sr_model()) as runtime:
        np.testing.assert_array_equal(
            runtime.run({"image": torch.from_numpy(images)})["sr"],  # type: ignore[dict-item]
            runtime.run({"image": images})["sr"],
        )


def test_a_closed_runtime_says_so(kind: type[Runtime]) -> None:
    runtime = opened(kind, sr_model())
    runtime.close()
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        runtime.run({"image": random_images()})


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_upscale_hides_the_edge_types_of_the_graph(kind: type[Runtime], layout: str) -> None:
    images = random_images()
    graph = ir.from_proto(sr_model())
    add_uint8_io(graph, layout)  # type: ignore[arg-type]
    with opened(kind, sr_model()) as plain, opened(kind, ir.to_proto(graph)) as edged:
        assert edged.inputs[0].dtype == np.uint8
        expected, result = plain.upscale(images), edged.upscale(images)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    # One more rounding, at most half a step, and a flipped code here or there.
    assert np.quantile(np.abs(result - expected.clip(0, 255)), 0.98) <= 0.51


def test_upscale_takes_rgb_batches_only(kind: type[Runtime]) -> None:
    with opened(kind, sr_model()) as runtime, pytest.raises(InputError, match=r"\(1, 4, 8, 8\)"):
        runtime.upscale(np.zeros((1, 4, 8, 8), np.float32))
    with opened(kind, sr_model(taps=True)) as runtime, pytest.raises(InputError, match="3 outputs"):
        runtime.upscale(random_images())


def test_overwriting_the_file_does_not_change_a_loaded_model(kind: type[Runtime], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sr_model().SerializeToString())
    with kind.open(path, ONE_THREAD) as runtime:
        before = runtime.upscale(random_images())
        path.write_bytes(b"\0" * path.stat().st_size)
        np.testing.assert_array_equal(runtime.upscale(random_images()), before)


def test_external_data_is_found_beside_the_file(kind: type[Runtime], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(sr_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with kind.open(path, ONE_THREAD) as split, opened(kind, sr_model()) as whole:
        np.testing.assert_array_equal(split.upscale(random_images()), whole.upscale(random_images()))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="external data"):
        kind.open(path)


def test_bytes_that_are_no_model_are_refused(kind: type[Runtime]) -> None:
    whole = sr_model().SerializeToString()
    for broken in (b"", b"x\n", whole[:100], whole[: len(whole) // 2], b"\x80" * 64):
        with pytest.raises(InputError, match=r"pic\.onnx"):
            kind.open_bytes(broken, label="pic.onnx")


def test_a_graph_the_runtime_does_not_know_is_refused(kind: type[Runtime]) -> None:
    model = sr_model("float")
    model.graph.node[0].op_type = "Conjure"
    with pytest.raises(InputError, match="Conjure"):
        opened(kind, model)


def test_options_that_cannot_be_honoured_are_refused(kind: type[Runtime]) -> None:
    refused = RuntimeOptions(precision="bf16") if kind is OnnxRuntime else RuntimeOptions(optimize=False)
    with pytest.raises(UsageError):
        opened(kind, sr_model(), refused)
    with pytest.raises(UsageError, match="--threads 0"):
        RuntimeOptions(threads=0)


def test_a_size_that_the_network_cannot_take_is_told_with_those_that_it_can(kind: type[Runtime]) -> None:
    # Pooled and enlarged again, as U-Nets do: sums with what was not pooled need sides that divide.
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["codes"]),
        onnx.helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["values"]),
        onnx.helper.make_node("AveragePool", ["values"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
        onnx.helper.make_node("Resize", ["small", "", "factors"], ["large"], mode="nearest"),
        onnx.helper.make_node("Add", ["values", "large"], ["sr"]),
    ]
    edges = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, f"{name}h", f"{name}w"])]
        for name in ("image", "sr")
    ]
    constants = {"factors": np.array([1, 1, 8, 8], np.float32), "step": np.float32(1), "zero": np.uint8(0)}
    filled = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "u", *edges, filled)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with opened(kind, model) as runtime:
        assert runtime.run({"image": np.zeros((1, 3, 64, 48), np.float32)})["sr"].shape == (1, 3, 64, 48)
        expected = (
            r"does not run on images of 97x71 pixels: .+; it runs where both sides are multiples of 8: .*104x72 say"
        )
        for _ in range(2):
            with pytest.raises(InputError, match=expected):
                runtime.run({"image": np.zeros((1, 3, 71, 97), np.float32)})
