"""The float twin computes what the network computed before quantization, with nothing of it left."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.errors import InputError
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.lowering.half_precision import convert_rest_to_half
from odm_deploy.lowering.image_edges import add_uint8_io
from tests.factories import lowered, tiny_model
from tests.sr_graphs import FORMS, Form, random_images, sr_model


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    name = model.graph.input[0].name
    return ReferenceEvaluator(model).run(None, {name: images})[0]


@pytest.mark.parametrize("form", FORMS)
def test_the_twin_is_the_float_network(form: Form) -> None:
    quantized, images = sr_model(form), random_images(2)
    before = quantized.SerializeToString(deterministic=True)
    twin = float_twin(quantized)
    onnx.checker.check_model(twin, full_check=True)
    assert operators(twin) == operators(sr_model("float"))
    assert twin.graph.input == quantized.graph.input
    assert twin.graph.output == quantized.graph.output
    np.testing.assert_allclose(run(twin, images), run(sr_model("float"), images), atol=2e-2, rtol=1e-4)
    assert quantized.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("form", ["bounded", "shifted"])
def test_half_precision_loses_its_quantizers_and_the_casts_around_them(form: Form) -> None:
    def halved(model: onnx.ModelProto) -> onnx.ModelProto:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
        convert_rest_to_half(graph)
        return ir.to_proto(graph)

    twin = float_twin(halved(sr_model(form)))
    assert operators(twin) == operators(halved(sr_model("float")))
    weights = {tensor.data_type for tensor in twin.graph.initializer if tensor.name.startswith(("body", "tail"))}
    assert weights == {TensorProto.FLOAT16}
    images = random_images()
    np.testing.assert_allclose(run(twin, images), run(sr_model("float"), images), atol=2.0, rtol=2e-2)


def test_the_image_edge_stays() -> None:
    graph = ir.from_proto(sr_model())
    add_uint8_io(graph, "nhwc")
    twin = float_twin(ir.to_proto(graph))
    assert twin.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    result = run(twin, random_images().astype(np.uint8).transpose(0, 2, 3, 1))
    assert result.dtype == np.uint8


@pytest.mark.parametrize("transposed", [False, True])
def test_a_shifted_matrix_product_gets_its_input_back(transposed: bool) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-9, 10, (6, 5)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 6).astype(np.float32)
    weight = codes * scales[:, None]
    center = np.float32(4.5)
    constants = {
        "c": center,
        "s": np.float32(0.25),
        "z": np.int8(0),
        "codes": codes if transposed else np.ascontiguousarray(codes.T),
        "scales": scales,
        "term": (center * weight.sum(1)).astype(np.float32),
        "bias": rng.normal(size=6).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["x", "c"], ["centered"]),
        helper.make_node("QuantizeLinear", ["centered", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["levels"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=0 if transposed else 1),
    ]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    nodes += [
        helper.make_node("MatMul", ["levels", "wt" if transposed else "w"], ["product"]),
        helper.make_node("Add", ["product", "term"], ["shifted"]),
        helper.make_node("Add", ["shifted", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    twin = float_twin(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert operators(twin) == Counter({"MatMul": 1, "Add": 1, "Transpose": transposed}) - Counter()
    x = rng.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(run(twin, x), x @ weight.T + constants["bias"], rtol=1e-4, atol=1e-4)


def test_bounds_that_are_the_networks_own_stay() -> None:
    model = sr_model("bounded")
    bound = next(tensor for tensor in model.graph.initializer if tensor.name == "tail.Min")
    # No whole number of steps of 1.5: not a quantizer's bound.
    bound.CopyFrom(numpy_helper.from_array(np.float32(6.4), "tail.Min"))
    kept = operators(float_twin(model))
    assert kept["Min"] == 1
    assert kept["QuantizeLinear"] == 0


def test_what_has_no_twin_is_refused() -> None:
    with pytest.raises(InputError, match="quantizes nothing"):
        float_twin(sr_model("float"))
    with pytest.raises(InputError, match="integer codes"):
        float_twin(sr_model("bounded", taps=True))


def test_a_graph_out_of_order_has_none():
    """ONNX Runtime sorts nodes itself, so such a file gets as far as here."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered(tiny_model()))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    with pytest.raises(InputError, match=r"has no float twin.*sorted"):
        float_twin(model)
