"""Which products overflow where pairs of them are added in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from odm_deploy.graphs.saturation import saturating_products
from tests.saturating_graphs import WAYS, product_of_codes, weights_made_by


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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("only_weights", [True, False])
def test_weights_that_the_graph_makes_count_as_stored_ones(way: str, only_weights: bool) -> None:
    for pair, found in (((1, 1), []), ((65, 64), ["product"])):
        model = weights_made_by(way, product_of_codes(weights_with(*pair)))
        assert saturating_products(model.graph, only_weights=only_weights) == found


def test_weights_nobody_can_read_count() -> None:
    model = product_of_codes(weights_with(1, 1))
    model.graph.initializer.append(numpy_helper.from_array(weights_with(1, 1), "same"))
    model.graph.node.insert(0, helper.make_node("Unheard", ["same"], ["made"], domain="elsewhere"))
    model.graph.node[-2].input[0] = "made"
    assert saturating_products(model.graph, only_weights=False) == ["product"]
    assert saturating_products(model.graph, only_weights=True) == ["product"]


@pytest.mark.parametrize(
    ("weights", "zero", "multiplied_with_zero", "multiplied_without"),
    [(127, 120, True, False), (40, -100, False, True), (1, 0, False, False)],
)
def test_zero_points_of_weights_are_taken_off_before_or_behind(
    weights: int, zero: int, multiplied_with_zero: bool, multiplied_without: bool
) -> None:
    model = product_of_codes(np.full((2, 8, 3, 3), weights, np.int8), zero_w=zero)
    assert bool(saturating_products(model.graph, only_weights=True)) is multiplied_with_zero
    assert bool(saturating_products(model.graph, only_weights=False)) is multiplied_without


def test_unsigned_weights_have_kernels_of_their_own_in_one_of_them() -> None:
    model = product_of_codes(np.full((2, 8, 3, 3), 255, np.uint8), zero_w=128)
    assert saturating_products(model.graph, only_weights=True) == []
    assert saturating_products(model.graph, only_weights=False) == ["product"]


def test_weights_of_sixteen_bits_are_no_matter_of_these_kernels() -> None:
    model = product_of_codes(np.full((2, 8, 3, 3), -32768, np.int16))
    assert saturating_products(model.graph, only_weights=False) == []


def test_weights_turned_behind_their_dequantizer_keep_no_axis() -> None:
    # One output has all that is large: rows of what is stored, columns of what is multiplied.
    weights = np.ones((8, 8), np.int8)
    weights[3] = 127
    model = product_of_codes(weights)
    assert saturating_products(model.graph, only_weights=True) == []
    model.graph.node.insert(3, helper.make_node("Transpose", ["weights"], ["turned"], perm=[1, 0]))
    model.graph.node[4].input[1] = "turned"
    assert saturating_products(model.graph, only_weights=True) == ["product"]
    assert saturating_products(model.graph, only_weights=False) == ["product"]


def test_zero_points_of_blocks_apply_to_their_block() -> None:
    weights = np.full((8, 8), 60, np.int8)
    model = product_of_codes(weights)
    zeros = np.zeros((2, 8), np.int8)
    for name, array in (("zero_w", zeros), ("scale_w", np.ones((2, 8), np.float32))):
        next(each for each in model.graph.initializer if each.name == name).CopyFrom(
            numpy_helper.from_array(array, name)
        )
    dequantizer = model.graph.node[-2]
    del dequantizer.attribute[:]
    dequantizer.attribute.extend([helper.make_attribute("axis", 0), helper.make_attribute("block_size", 4)])
    assert saturating_products(model.graph, only_weights=False) == []
    zeros[1, 2] = -60
    next(each for each in model.graph.initializer if each.name == "zero_w").CopyFrom(
        numpy_helper.from_array(zeros, "zero_w")
    )
    assert saturating_products(model.graph, only_weights=False) == ["product"]


@pytest.mark.parametrize(
    ("kind", "place"),
    [("QGemm", 3), ("MatMulIntegerToFloat", 1), ("DynamicQuantizeMatMul", 1), ("QLinearMatMul", 3), ("ConvInteger", 1)],
)
def test_operators_on_codes_count_by_their_weights(kind: str, place: int) -> None:
    for largest, found in ((64, []), (127, ["product"])):
        inputs = [f"other_{index}" for index in range(place)] + ["codes"]
        codes = numpy_helper.from_array(np.full((4, 4, 1, 1)[: 4 if kind == "ConvInteger" else 2], largest, np.int8))
        codes.name = "codes"
        node = helper.make_node(kind, inputs, ["y"], name="product")
        graph = helper.make_graph([node], "codes", [], [], [codes])
        assert saturating_products(graph, only_weights=True) == found


@pytest.mark.parametrize(("kind", "place", "zero"), [("QLinearConv", 3, 2), ("MatMulIntegerToFloat", 1, 4)])
def test_signed_codes_have_kernels_of_their_own_in_operators_on_codes(kind: str, place: int, zero: int) -> None:
    for of, found in ((np.uint8, ["product"]), (np.int8, [])):
        inputs = [f"other_{index}" for index in range(5)]
        inputs[place], inputs[zero] = "codes", "zero"
        stored = {"codes": np.full((4, 4, 1, 1)[: place + 1], 127, np.int8), "zero": of(0)}
        constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
        graph = helper.make_graph([helper.make_node(kind, inputs, ["y"], name="product")], "codes", [], [], constants)
        assert saturating_products(graph, only_weights=True) == found


def test_sums_by_a_formula_are_products_of_matrices_where_they_are_made_such() -> None:
    model = product_of_codes(np.full((8, 2), 127, np.int8))
    model.graph.node[-1].op_type = "Einsum"
    assert saturating_products(model.graph, only_weights=False) == ["product"]
    assert saturating_products(model.graph, only_weights=True) == []
