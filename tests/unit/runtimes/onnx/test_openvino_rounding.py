"""How far from a rounding tie OpenVINO's int8 quantizer may choose the other code: what its rounding note tells.

Behind an int8 convolution its codes are reproduced by a formula, and the formula explains them.
"""

from __future__ import annotations

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.machine.saturating_kernels import openvino_saturates
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu

SCALE = 17.01273536682129
FURTHEST = 1.2e-5
"""Steps from a tie: half a unit in the last place of 128..256, and the rounding of x / s in front of it."""

ACCUMULATED = np.arange(-127, 128)
"""What an int8 convolution of one channel and weight code 1 accumulates from its input codes."""
SCALE_X, STEP = 384.0, 240.0
"""A scale and a step with few significant bits, as `exact_sums` makes them; 1 / STEP is no float32 number."""
SCALES_W = (np.arange(8, 64) / 64).astype(np.float32)

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


def codes_behind_convolution(bias, lowest, highest):
    """int8 codes [channels, len(ACCUMULATED)] of a quantizer of `lowest`..`highest` behind an int8 convolution."""
    channels = SCALES_W.size
    constants = {
        "scale_x": np.float32(SCALE_X),
        "zero": np.int8(0),
        "weight": np.ones((channels, 1, 1, 1), np.int8),
        "scale_w": SCALES_W,
        "zero_w": np.zeros(channels, np.int8),
        "lower": np.float32(lowest * STEP),
        "upper": np.float32(highest * STEP),
        "step": np.float32(STEP),
        **({} if bias is None else {"bias": bias}),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale_x", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["weight", "scale_w", "zero_w"], ["weights"], axis=0),
        helper.make_node("Conv", ["levels", "weights", *([] if bias is None else ["bias"])], ["sums"]),
        helper.make_node("Max", ["sums", "lower"], ["above"]),
        helper.make_node("Min", ["above", "upper"], ["bounded"]),
        helper.make_node("QuantizeLinear", ["bounded", "step", "zero"], ["codes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 1, 1, ACCUMULATED.size])],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, [1, channels, 1, ACCUMULATED.size])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    with OpenVinoCpu.open_bytes(model.SerializeToString()) as runtime:
        return runtime.run({"x": ACCUMULATED.astype(np.int8).reshape(1, 1, 1, -1)})["codes"][0, :, 0].astype(int)


@pytest.mark.skipif(openvino_saturates(), reason="this CPU's integer kernels saturate, so floats are multiplied")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("lowest", "highest"), [(0, 3), (-8, 7)])
def test_behind_a_convolution_it_multiplies_with_the_reciprocal_of_the_step(with_bias, lowest, highest):
    channel_scales = np.float32(SCALE_X) * SCALES_W[:, None]
    sums = channel_scales * ACCUMULATED.astype(np.float32)
    bias = None
    if with_bias:
        # Multiples of the products' unit: all sums stay exact.
        bias = (np.random.default_rng(0).integers(-40, 40, SCALES_W.size) * channel_scales[:, 0]).astype(np.float32)
        sums = sums + bias[:, None]
    reciprocal = np.float32(1.0) / np.float32(STEP)
    # Without a bias, the convolution's own scales are part of the factor, which then rounds twice.
    folded = channel_scales * reciprocal * ACCUMULATED.astype(np.float32)
    expected = np.clip(np.rint(sums * reciprocal if with_bias else folded), lowest, highest)
    found = codes_behind_convolution(bias, lowest, highest)
    assert np.array_equal(found, expected)
    # That is not what a division gives, but only where the exact quotient is a tie.
    quotients = sums.astype(np.float64) / STEP
    differ = found != np.clip(np.rint(quotients), lowest, highest)
    assert differ.any()
    assert np.all(quotients[differ] - np.floor(quotients[differ]) == 0.5)
