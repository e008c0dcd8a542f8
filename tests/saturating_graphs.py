"""Graphs of one product in 8 bits, with the weights that a test needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE_PX = 8


WAYS = ("QuantizeLinear", "Transpose", "Identity", "Constant")
"""Operators that make weights in `weights_made_by`."""


def weights_made_by(way: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of `product_of_codes` whose int8 weights come from an operator, and no longer are stored."""
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "codes")
    codes = numpy_helper.to_array(stored)
    axis = 0 if codes.ndim == 4 else 1
    source = {"QuantizeLinear": codes.astype(np.float32), "Transpose": codes.swapaxes(0, 1)}.get(way, codes)
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(source), "source"))
    if way == "Constant":
        node = helper.make_node("Constant", [], ["codes"], value=numpy_helper.from_array(codes))
    elif way == "Transpose":
        node = helper.make_node(way, ["source"], ["codes"], perm=[1, 0, *range(2, codes.ndim)])
    elif way == "QuantizeLinear":
        node = helper.make_node(way, ["source", "scale_w", "zero_w"], ["codes"], axis=axis)
    else:
        node = helper.make_node(way, ["source"], ["codes"])
    model.graph.node.insert(0, node)
    onnx.checker.check_model(model)
    return model


def product_of_codes(
    weights: NDArray[Any],
    *,
    last_code: int = 255,
    zero: np.generic | None = None,
    step: float = 0.0,
    zero_w: int | None = 0,
) -> onnx.ModelProto:
    """An image quantized to codes from 0 to `last_code`, and a convolution of it (4-d weights) or a matrix product.

    Args:
        weights: codes, [O, I, H, W] or [K, N], of the type that they are stored in.
        last_code: below 255 it bounds the codes.
        zero: the zero point of the image's codes, whose type they have; unsigned 0 by default.
        step: of the quantizer behind the product, around zero, if there is to be one.
        zero_w: the weights' zero point; None: none is stored.
    """
    channels = weights.shape[1] if weights.ndim == 4 else 1
    constants = {
        "scale": np.float32(1),
        "zero": np.uint8(0) if zero is None else zero,
        "first": np.uint8(0),
        "last": np.uint8(last_code),
        "codes": weights,
        "scale_w": np.ones(weights.shape[0 if weights.ndim == 4 else 1], np.float32),
        "zero_w": np.full(weights.shape[0 if weights.ndim == 4 else 1], zero_w or 0, weights.dtype),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["whole"]),
        *([helper.make_node("Clip", ["whole", "first", "last"], ["bounded"])] if last_code < 255 else []),
        helper.make_node("DequantizeLinear", ["bounded" if last_code < 255 else "whole", "scale", "zero"], ["levels"]),
        helper.make_node(
            "DequantizeLinear",
            ["codes", "scale_w", *(["zero_w"] if zero_w is not None else [])],
            ["weights"],
            axis=0 if weights.ndim == 4 else 1,
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
