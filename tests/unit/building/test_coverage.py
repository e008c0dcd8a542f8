"""Counting multiply-accumulates, and telling why layers are not int8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from odm_deploy.building.coverage import Coverage, LayerCoverage, count_macs, coverage, infer_shapes
from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.lint.graph import QdqGraph
from tests.qdq_graphs import Builder

PROFILE = InputShapes.static(1, 10, 12, channels=16)


def record(node, precision="int8"):
    return LayerRecord(f"{node}_engine", "correlation", precision, (node,))


def macs_of(op, weight_shape, **attributes):
    b = Builder()
    weight = b.constant("w", np.zeros(weight_shape, np.float32))
    graph = QdqGraph(b.model(b.op(op, ["x", weight], "layer", **attributes)))
    return count_macs(graph, graph.nodes[0], infer_shapes(graph.model, PROFILE))


@pytest.mark.parametrize(
    ("op", "weight_shape", "attributes", "expected"),
    [
        ("Conv", (32, 16, 3, 3), {"pads": [1] * 4}, 10 * 12 * 32 * 16 * 9),
        ("Conv", (32, 16, 3, 3), {}, 8 * 10 * 32 * 16 * 9),
        ("Conv", (32, 4, 3, 3), {"group": 4, "pads": [1] * 4}, 10 * 12 * 32 * 4 * 9),
        ("Conv", (8, 16, 3, 3), {"strides": [2, 2], "pads": [1] * 4}, 5 * 6 * 8 * 16 * 9),
        ("ConvTranspose", (16, 8, 2, 2), {"strides": [2, 2]}, 20 * 24 * 8 * 16),
        ("MatMul", (12, 7), {}, 16 * 10 * 12 * 7),
    ],
)
def test_macs_are_counted_at_the_optimal_shape(op, weight_shape, attributes, expected):
    assert macs_of(op, weight_shape, **attributes) == expected


def test_gemm_sums_over_the_other_axis_when_transposed():
    b = Builder()
    flat = b.op("Reshape", ["x", b.constant("shape", np.array([16, 120]))], "flat")
    weight = b.constant("w", np.zeros((16, 5), np.float32))
    graph = QdqGraph(b.model(b.op("Gemm", [flat, weight], "layer", transA=1)))
    assert count_macs(graph, graph.nodes[1], infer_shapes(graph.model, PROFILE)) == 120 * 16 * 5


@pytest.mark.parametrize(
    ("equation", "shape", "expected"),
    [
        ("nchw,ncdw->nhd", (1, 16, 7, 12), 16 * 10 * 12 * 7),
        ("nchw, cd -> ndhw", (16, 5), 16 * 10 * 12 * 5),
        ("nchw,nchw->nchw", (1, 16, 10, 12), 0),  # nothing is summed up: no product of matrices
        ("nchw,...->nhw", (1, 16, 10, 12), None),
    ],
)
def test_einsums_are_products_like_others(equation, shape, expected):
    b = Builder()
    graph = QdqGraph(
        b.model(b.op("Einsum", ["x", b.constant("w", np.zeros(shape, np.float32))], "y", equation=equation))
    )
    shapes = {"x": (1, 16, 10, 12), "w": shape}
    assert count_macs(graph, graph.nodes[0], shapes) == expected


def test_work_of_einsums_is_work_that_is_not_int8():
    b = Builder()
    body = b.conv(b.qdq("x", "a"), b.weights())
    weight = b.constant("w", np.zeros((16, 8), np.float32))
    model = b.model(b.op("Einsum", [body, weight], "mixed", equation="nchw,cd->ndhw"))
    covered = coverage(model, [record("layer")], PROFILE)
    assert [(layer.name, layer.reason) for layer in covered.layers] == [("layer", ""), ("mixed", "float in this model")]
    assert covered.int8_share() == f", {144 / 152:.1%} of all MACs"


def test_shapes_follow_the_input_through_symbolic_annotations():
    b = Builder()
    model = b.model(b.op("DepthToSpace", ["x"], "y", blocksize=2))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "2*H", "2*W"]))
    before = model.SerializeToString()
    assert infer_shapes(model, PROFILE)["y"] == (1, 4, 20, 24)
    assert model.SerializeToString() == before


def test_unknown_shapes_count_nothing_and_fail_nothing():
    b = Builder()
    covered = coverage(b.model(b.conv(b.qdq("x", "a"), b.weights())), [record("layer")])
    assert covered.layers[0].macs is None
    assert covered.macs == 0


def test_sums_by_layers_and_by_macs(tmp_path):
    b = Builder()
    body = b.conv(b.qdq("x", "a"), b.weights())
    model = b.model(b.op("Conv", [body, b.constant("w", np.zeros((8, 16, 1, 1), np.float32))], "tail"))
    onnx.save(model, tmp_path / "model.onnx")
    covered = coverage(tmp_path / "model.onnx", [record("layer"), record("tail", "fp32")], PROFILE)
    assert (covered.quantized_layers, covered.int8_layers, covered.fallbacks) == (1, 1, ())
    assert covered.int8_macs == covered.quantized_macs == 10 * 12 * 16 * 16 * 9
    assert covered.macs - covered.int8_macs == 10 * 12 * 8 * 16
    assert [layer.reason for layer in covered.layers] == ["", "float in this model"]
    assert covered.int8_share() == f", {144 / 152:.1%} of all MACs"


def test_a_share_of_what_can_be_counted_is_no_share_of_all():
    known, unknown = (LayerCoverage(str(macs), "Conv", True, "int8", "", macs, "") for macs in (9, None))
    assert Coverage((known, unknown)).int8_share() == ", 100.0% of the MACs of 1 layer, those of 1 more are not known"
    assert Coverage((unknown,)).int8_share() == ""


def test_layer_the_engine_does_not_name_is_missing():
    b = Builder()
    (layer,) = coverage(b.model(b.conv(b.qdq("x", "a"), b.weights())), [], PROFILE).fallbacks
    assert (layer.precision, layer.engine_layer) == ("missing", "")
    assert "no layer of the engine" in layer.reason


def test_layers_of_a_few_numbers_are_no_fallback_that_matters():
    def covered(*macs):
        return Coverage(
            tuple(
                LayerCoverage(f"{count}", "Conv", True, "fp32" if at else "int8", "", count, "")
                for at, count in enumerate(macs)
            )
        )

    assert covered(1_000_000).fallbacks == ()
    assert not covered(1_000_000, 400).fallbacks_matter
    assert covered(1_000_000, 400, 400).fallbacks_matter
    assert covered(1_000_000, 400, None).fallbacks_matter
