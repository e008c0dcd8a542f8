"""How far from a rounding tie OpenVINO's int8 quantizer may choose the other code: what its rounding note tells."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from odm_deploy.runtimes.openvino_cpu import OpenVinoCpu

SCALE = 17.01273536682129
FURTHEST = 1.2e-5
"""Steps from a tie: half a unit in the last place of 128..256, and the rounding of x / s in front of it."""

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the note describes OpenVINO's x86 kernels"
)


def quantize(values):
    """int8 codes of float32 [n] as a QuantizeLinear node of its own gives them."""
    shape = [1, 1, 1, "n"]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])],
        "quantizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [SCALE]),
            helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    with OpenVinoCpu.open_bytes(model.SerializeToString()) as runtime:
        return runtime.run({"x": values.reshape(1, 1, 1, -1)})["codes"].ravel().astype(int)


def test_only_values_beside_ties_differ_and_by_one_code():
    ties = np.arange(-120, 120)[:, None] + 0.5
    values = ((ties + np.linspace(-4e-5, 4e-5, 201)) * SCALE).astype(np.float32).ravel()
    difference = quantize(values) - np.rint(values / np.float32(SCALE)).astype(int)
    steps = values.astype(np.float64) / float(np.float32(SCALE))
    from_tie = np.abs(steps - np.floor(steps) - 0.5)
    # Which of them differ, and whether any does, is up to the kernel that OpenVINO picks for the CPU.
    assert from_tie[difference != 0].max(initial=0) < FURTHEST
    assert np.abs(difference).max() <= 1
