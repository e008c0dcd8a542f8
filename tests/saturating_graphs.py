"""Graphs of one product in 8 bits, with the weights that a test needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE_PX = 8


def product_of_codes(
    weights: NDArray[Any], *, last_code: int = 255, zero: np.generic | None = None, step: float = 0.0
) -> onnx.ModelProto:
    """An image quantized to codes from 0 to `last_code`, and a convolution of it (4-d weights) or a matrix product.

    Args:
        weights: int8 codes, [O, I, H, W] or [K, N].
        last_code: below 255 it bounds the codes.
        zero: the zero point of the image's codes, whose type they have; unsigned 0 by default.
        step: of the quantizer behind the product, around zero, if there is to be one.
    """
    channels = weights.shape[1] if weights.ndim == 4 else 1
    constants = {
        "scale": np.float32(1),
        "zero": np.uint8(0) if zero is None else zero,
        "first": np.uint8(0),
        "last": np.uint8(last_code),
        "codes": weights,
        "scale_w": np.ones(weights.shape[0 if weights.ndim == 4 else 1], np.float32),
        "zero_w": np.zeros(weights.shape[0 if weights.ndim == 4 else 1], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["whole"]),
        *([helper.make_node("Clip", ["whole", "first", "last"], ["bounded"])] if last_code < 255 else []),
        helper.make_node("DequantizeLinear", ["bounded" if last_code < 255 else "whole", "scale", "zero"], ["levels"]),
        helper.make_node(
            "DequantizeLinear", ["codes", "scale_w", "zero_w"], ["weights"], axis=0 if weights.ndim == 4 else 1
        ),
        helper.make_node(
            "Conv" if weights.ndim == 4 else "MatMul", ["levels", "weights"], ["sums" if step else "y"], name="product"
        ),
    ]
    if step:
        constants |= {"step": np.float32(step), "middle": np.uint8(128)}
        nodes.append(helper.make_node("QuantizeLinear", ["sums", "step", "middle"], ["rounded"]))
        nodes.append(helper.make_node("DequantizeLinear", ["rounded", "step", "middle"], ["y"]))
    side = SIDE_PX if weights.ndim == 4 else weights.shape[0]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, "h", side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "o", "rows", "columns"])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model
