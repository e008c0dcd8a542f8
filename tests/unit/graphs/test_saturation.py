"""Which products overflow where pairs of them are added in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from odm_deploy.graphs.saturation import saturating_products
from tests.saturating_graphs import product_of_codes


def weights_with(first: int, second: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """[2, 8, 3, 3] of zeros, but for two in one channel."""
    weights = np.zeros((2, 8, 3, 3), np.int8)
    weights[1, 3, 0, 2], weights[1, 6, 1, 1] = first, second
    return weights


@pytest.mark.parametrize(
    ("first", "second", "saturates"),
    [(64, 64, False), (65, 64, True), (127, 1, False), (-64, -64, False), (-65, -64, True), (127, -127, False)],
)
def test_two_weights_of_one_sign_and_one_channel_decide(first: int, second: int, saturates: bool) -> None:
    # 255 * 128 = 32640 is the last multiple of 255 below 2^15.
    graph = product_of_codes(weights_with(first, second)).graph
    assert saturating_products(graph, only_weights=True) == (["product"] if saturates else [])


def test_weights_of_two_channels_are_never_added() -> None:
    weights = np.zeros((2, 8, 1, 1), np.int8)
    weights[:, 0] = 127
    assert saturating_products(product_of_codes(weights).graph, only_weights=False) == []
    matrix = np.zeros((8, 2), np.int8)
    matrix[0] = 127
    assert saturating_products(product_of_codes(matrix).graph, only_weights=False) == []
    matrix[1] = 127
    assert saturating_products(product_of_codes(matrix).graph, only_weights=False) == ["product"]


def test_codes_of_few_bits_leave_room_for_large_weights() -> None:
    weights = weights_with(127, 127)
    assert saturating_products(product_of_codes(weights, last_code=129).graph, only_weights=True) == []
    assert saturating_products(product_of_codes(weights, last_code=130).graph, only_weights=True) == ["product"]


def test_signed_codes_count_where_weights_are_halved_for_them_and_are_made_unsigned_elsewhere() -> None:
    small, large = (product_of_codes(weights_with(*pair), zero=np.int8(0)).graph for pair in ((1, 1), (65, 64)))
    assert saturating_products(small, only_weights=True) == []
    assert saturating_products(small, only_weights=False) == ["product"]
    assert saturating_products(large, only_weights=True) == ["product"]


def test_attention_counts_and_products_of_floats_do_not() -> None:
    model = product_of_codes(weights_with(1, 1))
    del model.graph.node[-2:]
    model.graph.node.append(helper.make_node("MatMul", ["levels", "levels"], ["y"], name="attention"))
    assert saturating_products(model.graph, only_weights=True) == []
    assert saturating_products(model.graph, only_weights=False) == ["attention"]
    model.graph.node[-1].input[:] = ["x", "x"]
    assert saturating_products(model.graph, only_weights=False) == []


def test_weights_nobody_can_read_count() -> None:
    model = product_of_codes(weights_with(1, 1))
    floats = numpy_helper.from_array(np.zeros((2, 8, 3, 3), np.float32), "floats")
    model.graph.initializer.append(floats)
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["floats", "scale_w", "zero_w"], ["made"], axis=0))
    model.graph.node[-2].input[0] = "made"
    assert saturating_products(model.graph, only_weights=False) == ["product"]
