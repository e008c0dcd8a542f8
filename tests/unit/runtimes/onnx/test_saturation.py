"""Runtimes give sums of 8-bit products as they are, also with the instructions of CPUs that would saturate them."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.options import RuntimeOptions
from tests.conftest import REPOSITORY
from tests.saturating_graphs import SIDE_PX, WAYS, product_of_codes, weights_made_by

_RUN = """
import sys
import numpy as np
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
with OpenVinoCpu.open_bytes(open(sys.argv[1], "rb").read()) as runtime:
    np.save(sys.argv[2], runtime.run({"x": np.load(sys.argv[3])})["y"])
    print(runtime.speed_note)
"""


def largest_products() -> tuple[bytes, np.ndarray]:
    """Weights at both ends, under codes at the upper one."""
    weights = np.full((16, 32, 3, 3), 127, np.int8)
    weights[::2] = -127
    # In ONNX Runtime only what is quantized behind is a product of codes.
    model = product_of_codes(weights, step=2.0**17)
    return model.SerializeToString(), np.full((1, 32, 4, SIDE_PX), 255, np.float32)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "AVX512_CORE", "ALL"])
def test_openvino_multiplies_in_float_where_its_integers_saturate(instructions: str, tmp_path: Path) -> None:
    model, image = largest_products()
    (tmp_path / "model.onnx").write_bytes(model)
    np.save(tmp_path / "image.npy", image)
    files = [str(tmp_path / name) for name in ("model.onnx", "found.npy", "image.npy")]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *files],
        env={"ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    with OnnxRuntime.open_bytes(model, RuntimeOptions(optimize=False)) as plain:
        expected = plain.run({"x": image})["y"]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)
    assert ("--any-cpu" in done.stdout) is (instructions != "ALL" or OpenVinoCpu.open_bytes(model).speed_note != "")


def assert_right(model: bytes, image: np.ndarray) -> None:
    """Both runtimes give what ONNX Runtime gives node by node."""
    with OnnxRuntime.open_bytes(model, RuntimeOptions(optimize=False)) as plain:
        expected = plain.run({"x": image})["y"]
    for runtime in (OnnxRuntime, OpenVinoCpu):
        with runtime.open_bytes(model) as fast:
            np.testing.assert_array_equal(fast.run({"x": image})["y"], expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("readers", [1, 2])
def test_weights_that_the_graph_makes_are_multiplied_rightly(way: str, readers: int) -> None:
    _, image = largest_products()
    model = weights_made_by(way, product_of_codes(np.full((16, 32, 3, 3), 127, np.int8), step=2.0**17))
    if readers == 2:
        # The product behind a sum with itself, of the same weights.
        again = onnx.NodeProto.FromString(
            next(node for node in model.graph.node if node.name == "product").SerializeToString()
        )
        again.name, again.output[0] = "again", "other_sums"
        model.graph.node.insert(len(model.graph.node) - 2, again)
        quantizer = onnx.NodeProto.FromString(model.graph.node[-2].SerializeToString())
        quantizer.input[0], quantizer.output[0] = "other_sums", "other_rounded"
        dequantizer = onnx.NodeProto.FromString(model.graph.node[-1].SerializeToString())
        dequantizer.input[0], dequantizer.output[0] = "other_rounded", "other"
        model.graph.node[-1].output[0] = "one"
        model.graph.node.extend([quantizer, dequantizer, onnx.helper.make_node("Add", ["one", "other"], ["y"])])
    assert_right(model.SerializeToString(), image)


@pytest.mark.parametrize("zero_w", [None, 0, 100, -20])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("matrix", [True, False])
def test_zero_points_of_weights_are_no_matter(zero_w: int | None, quantized: bool, matrix: bool) -> None:
    weights = np.full((32, 16) if matrix else (16, 32, 3, 3), 127, np.int8)
    image = np.full((1, 1, 4, 32) if matrix else (1, 32, 4, SIDE_PX), 255, np.float32)
    model = product_of_codes(weights, step=2.0**14 if quantized else 0.0, zero_w=zero_w)
    assert_right(model.SerializeToString(), image)


@pytest.mark.parametrize(
    ("kind", "zero"), [(np.uint8, 128), (np.uint8, 100), (np.uint8, 0), (np.int8, -100), (np.int8, 0)]
)
def test_zero_points_of_transposed_convolutions_weights_are_no_matter(kind: type[np.integer], zero: int) -> None:
    # Small enough to saturate nowhere.
    codes = np.random.default_rng(0).integers(-20, 21, (8, 8, 3, 3)) + zero
    model = product_of_codes(codes.clip(np.iinfo(kind).min).astype(kind), zero_w=zero)
    model.graph.node[-1].op_type = "ConvTranspose"
    model.graph.node[-2].attribute[0].i = 1
    assert_right(model.SerializeToString(), np.full((1, 8, 4, SIDE_PX), 255, np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_onnx_runtime_has_kernels_for_operators_on_codes_of_either_type(kind: type[np.integer]) -> None:
    stored = {
        "one": np.float32(1),
        "zero": kind(0),
        "codes": np.full((8, 4), 127, np.int8),
        "zero_w": np.int8(0),
        "step": np.float32(2.0**11),
    }
    node = onnx.helper.make_node(
        "QLinearMatMul", ["x", "one", "zero", "codes", "one", "zero_w", "step", "zero"], ["y"], name="product"
    )
    of = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = onnx.helper.make_graph(
        [node],
        "codes",
        [onnx.helper.make_tensor_value_info("x", of, [2, 8])],
        [onnx.helper.make_tensor_value_info("y", of, [2, 4])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    largest = np.iinfo(kind).max
    with OnnxRuntime.open_bytes(model.SerializeToString()) as runtime:
        found = runtime.run({"x": np.full((2, 8), largest, kind)})["y"]
    np.testing.assert_array_equal(found, np.full((2, 4), round(8 * int(largest) * 127 / 2**11), kind))


def test_onnx_runtime_adds_in_32_bits_where_16_overflow() -> None:
    model, image = largest_products()
    with OnnxRuntime.open_bytes(model) as fast, OnnxRuntime.open_bytes(model, RuntimeOptions(optimize=False)) as plain:
        feeds = {"x": image}
        np.testing.assert_array_equal(fast.run(feeds)["y"], plain.run(feeds)["y"])
