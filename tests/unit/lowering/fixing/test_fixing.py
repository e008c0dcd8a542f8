"""Graphs that TensorRT refuses, saturates or runs as float become ones it runs as int8, and compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.errors import GateError, InputError
from odm_deploy.graphs.plain_run import run_plainly
from odm_deploy.lowering.fixing import fix
from odm_deploy.lowering.fixing.changes import Changes
from odm_deploy.lowering.fixing.equality import compare
from odm_deploy.lowering.lint import lint, quantizing_branches
from odm_deploy.lowering.lint.graph import QdqGraph
from odm_deploy.lowering.lint.operands import find_layers
from tests.qdq_graphs import CHANNELS, LEGAL, TRAPS, Builder

CURED = [
    "zero point 3",
    "zero point 3 behind Identity",
    "uint8 zero point 128",
    "uint8 zero point 0",
    "zero point left out",
    "activation scale of shape [1]",
    "activation scale a channel",
    "UINT8 weights",
    "UINT4 weights",
    "int4 weights, int8 input",
    "int32 bias",
    "weight zero point 2",
    "dead channel",
    "ReLU after DQ",
    "zero pad after DQ",
    "resize after DQ",
    "codes behind Identity",
    "codes behind Transpose",
    "weights in two halves",
    "two quantizers with one name",
    "Clip between Q and DQ",
]
"""Traps that exactness allows to remove."""

LEFT = {
    "Add after DQ": "operation-after-dequantize",
    "average pool after DQ": "operation-after-dequantize",
    "Concat of different scales": "concat-scales",
    "quantized ConvTranspose": "transposed-convolution",
    "weights only": "half-quantized",
    "scale computed at run time": "scale-at-run-time",
    "QLinearConv": "integer-operators",
}
"""Traps that stay, and how lint names them."""


def failing(model):
    return {finding.rule for finding in lint(model) if finding.severity.fails_gate}


def reference(model, x):
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("label", CURED)
def test_trap_is_removed_and_a_second_implementation_agrees(label):
    original = TRAPS[label].build()
    fixed = fix(original)
    assert failing(fixed.model) == set()
    assert all(layer.activation.quantized and layer.weight.quantized for layer in find_layers(QdqGraph(fixed.model)))
    assert fixed.equality.holds
    assert fixed.equality.codes > 0
    if "int4" in label or "4 weights" in label:
        return  # the reference wants unpacked codes
    x = np.random.default_rng(3).uniform(-70, 130, (1, CHANNELS, 8, 10)).astype(np.float32)
    before, after = reference(original, x), reference(fixed.model, x)
    # Values between two codes may round the other way after a subtraction; wrong constants would move all values.
    close = np.abs(before - after) <= 1e-5 * np.abs(before).max()
    assert close.mean() > 0.99


@pytest.mark.parametrize("label", LEFT)
def test_what_cannot_be_kept_exact_is_named(label):
    original = TRAPS[label].build()
    fixed = fix(original)
    assert LEFT[label] in failing(fixed.model)
    assert fixed.equality.identical == 1


@pytest.mark.parametrize("label", ["plain", "half precision rest", "attention", "Gemm transB"])
def test_what_is_legal_stays_as_it_is(label):
    fixed = fix(LEGAL[label]())
    assert fixed.done == {}
    assert fixed.left == ()
    assert fixed.equality.identical == 1


def test_codes_of_sixteen_bits_are_rounded_in_float_to_the_same_bits():
    fixed = fix(TRAPS["UINT16 activation"].build())
    assert fixed.equality.identical == 1
    assert "16-bit codes" in fixed.left[0]
    assert str(fixed.equality) == "no codes to compare are left; outputs equal to the bit"
    assert "activation-type" not in failing(fixed.model)


def test_unsigned_weights_beyond_int8_get_a_channel_that_sums():
    b = Builder()
    codes = np.random.default_rng(1).integers(0, 256, (CHANNELS, CHANNELS, 3, 3))
    codes[0, 0, 0] = [0, 255, 3]
    weights = [b.constant("w_q", codes.astype(np.uint8)), b.constant("w_s", np.float32(0.01))]
    w = b.op("DequantizeLinear", [*weights, b.constant("w_z", np.uint8(120))], "weight_dq")
    fixed = fix(b.model(b.conv(b.qdq("x", "a", 0.5, np.uint8(100)), w)))
    assert [layer.name for layer in find_layers(QdqGraph(fixed.model))] == ["layer.sum/Conv", "layer"]
    assert failing(fixed.model) == set()
    assert fixed.equality.error < 1e-5


@pytest.mark.parametrize(("kind", "zero"), [("int8", 0), ("int8", 5), ("uint8", 128), ("uint8", 100)])
@pytest.mark.parametrize("activation_zero", [np.int8(0), np.uint8(128), np.int8(3)])
def test_weights_stored_float_behind_q_and_dq_are_the_codes_they_become(kind, zero, activation_zero):
    """As exporters write fake quantization of weights: rounded and clipped in the graph, to whatever type."""
    b = Builder()
    floats = np.random.default_rng(5).normal(0, 0.6, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    scales = np.linspace(0.005, 0.02, CHANNELS, dtype=np.float32)
    parameters = [b.constant("weight_s", scales), b.constant("weight_z", np.full(CHANNELS, zero, kind))]
    codes = b.op("QuantizeLinear", [b.constant("weight", floats), *parameters], "weight_q", axis=0)
    weight = b.op("DequantizeLinear", [codes, *parameters], "weight_dq", axis=0)
    original = b.model(b.conv(b.qdq("x", "a", 0.5, activation_zero), weight))
    fixed = fix(original)
    assert failing(fixed.model) == set()
    assert fixed.equality.holds
    layers = find_layers(QdqGraph(fixed.model))
    assert layers
    assert all(layer.activation.quantized and layer.weight.quantized for layer in layers)
    # The builder rounds what is int8 without zero points itself; anything else is rounded here.
    floats_left = [each.name for each in fixed.model.graph.initializer if each.name == "weight"]
    assert len(floats_left) == (kind == "int8" and zero == 0)
    x = np.random.default_rng(3).uniform(-70, 70, (1, CHANNELS, 8, 10)).astype(np.float32)
    before, after = reference(original, x), reference(fixed.model, x)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_shared_quantizer_serves_layers_of_any_padding_and_everybody_else():
    b = Builder()
    x = b.qdq("x", "a", 0.5, np.uint8(100))
    first = b.conv(x, b.weights())
    wide = b.constant("wide_q", b.codes(CHANNELS, CHANNELS, 1, 1).astype(np.int8))
    second = b.op(
        "Conv", [x, b.op("DequantizeLinear", [wide, b.constant("wide_s", np.float32(0.01))], "wide")], "second"
    )
    fixed = fix(b.model(b.op("Add", [b.op("Add", [first, second], "sum"), x], "y")))
    assert failing(fixed.model) == set()
    assert fixed.equality.error < 1e-5


def test_power_of_two_scale_and_odd_zero_point_keep_every_tie():
    b = Builder()
    original = b.model(b.conv(b.qdq("x", "a", 0.25, np.uint8(101)), b.weights()))
    x = np.arange(-400, 400).reshape(1, 1, 20, 40).repeat(CHANNELS, 1).astype(np.float32) / 8
    fixed = fix(original)
    assert np.allclose(reference(original, x), reference(fixed.model, x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("op", ["linear resize", "average pool"])
def test_averages_of_codes_keep_every_tie(op):
    """They lie exactly between two codes, where the last bit of a shifted value decides."""
    b = Builder()
    x = b.qdq("x", "a", 0.023, np.uint8(101))
    if op == "linear resize":
        sizes = [b.constant("roi", np.zeros(0, np.float32)), b.constant("factors", np.float32([1, 1, 2, 2]))]
        x = b.op("Resize", [x, *sizes], "mean", mode="linear")
    else:
        x = b.op("AveragePool", [x], "mean", kernel_shape=[2, 2], strides=[2, 2])
    original = b.model(b.conv(b.qdq(x, "b", 0.023, np.uint8(101)), b.weights()))
    fixed = fix(original)
    assert failing(fixed.model) == set()
    assert fixed.equality.flips == 0
    x = np.random.default_rng(4).uniform(-3, 4, (1, CHANNELS, 16, 20)).astype(np.float32)
    before, after = reference(original, x), reference(fixed.model, x)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


LAYERS_OF_OTHER_SHAPES = {
    "Gemm with alpha": ("Gemm", (-1, 12), (12, 5), {"alpha": 0.5}),
    "a stack of matrices": ("MatMul", (1, CHANNELS, -1, 12), (CHANNELS, 12, 5), {}),
    "a vector": ("MatMul", (-1, 12), (12,), {}),
    "convolution along a line": ("Conv", (1, CHANNELS, -1), (5, CHANNELS, 3), {"pads": [1, 1]}),
    "convolution in a volume": ("Conv", (1, CHANNELS, -1, 4, 4), (5, CHANNELS, 3, 3, 3), {"pads": [1] * 6}),
}


@pytest.mark.parametrize("label", LAYERS_OF_OTHER_SHAPES)
@pytest.mark.parametrize("kind", ["int8", "uint8", "scale a channel"])
def test_layers_that_are_no_convolutions_of_images(label, kind):
    op, shape, weights, attributes = LAYERS_OF_OTHER_SHAPES[label]
    b = Builder()
    b.batch = 1
    x = b.op("Reshape", ["x", b.constant("shape", np.int64(shape))], "rows")
    if kind == "scale a channel" and op == "Conv":
        x = b.qdq(x, "a", np.linspace(0.3, 0.6, CHANNELS, dtype=np.float32), np.full(CHANNELS, 100, np.uint8))
    else:
        x = b.qdq(x, "a", 0.5, np.uint8(100))
    unsigned = kind == "uint8"
    codes = b.codes(*weights, low=0, high=255) if unsigned else b.codes(*weights)
    w = [b.constant("w_q", codes.astype(np.uint8 if unsigned else np.int8)), b.constant("w_s", np.float32(0.01))]
    w.append(b.constant("w_z", np.uint8(9) if unsigned else np.int8(0)))
    original = b.model(b.op(op, [x, b.op("DequantizeLinear", w, "w_dq")], "y", **attributes))
    fixed = fix(original)
    x = np.random.default_rng(3).uniform(-70, 70, (1, CHANNELS, 24, 24)).astype(np.float32)
    before, after = run_plainly(original, {"x": x}, ["y"])["y"], run_plainly(fixed.model, {"x": x}, ["y"])["y"]
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    channels = kind == "scale a channel" and op == "Conv"
    assert bool(fixed.left) == (label == "a vector" or channels or (label == "Gemm with alpha" and unsigned))


def test_inputs_that_constants_fill_are_dropped_not_asked_for():
    """As exporters before version 4 of the format write them, and torch with keep_initializers_as_inputs."""
    b = Builder()
    original = b.model(b.conv(b.qdq("x", "a", 0.5, np.uint8(100)), b.weights()))
    entries = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in b.initializers]
    original.graph.input.extend(entries)
    assert [value.name for value in fix(original).model.graph.input] == ["x"]


def test_graph_of_halves_is_compared_by_what_halves_hold():
    b = Builder()
    b.input_type = TensorProto.FLOAT16
    x = b.qdq("x", "a", np.asarray(0.02, np.float16), np.uint8(100))
    codes = b.constant("w_q", b.codes(CHANNELS, CHANNELS, 3, 3).astype(np.int8))
    weight = b.op("DequantizeLinear", [codes, b.constant("w_s", np.float16(0.01))], "w_dq")
    original = b.model(b.conv(x, weight))
    original.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "not float32" in fix(original).left[0]


@pytest.mark.filterwarnings("error")
def test_infinite_bias_is_compared_without_warnings():
    b = Builder()
    bias = b.constant("bias", np.float32([np.inf] * CHANNELS))
    assert fix(b.model(b.conv(b.qdq("x", "a", 0.5, np.uint8(100)), b.weights(), bias))).equality.holds


def test_uint8_image_and_uint8_codes_at_the_edges():
    b = Builder()
    b.input_type = TensorProto.UINT8
    scale, zero = b.constant("s", np.float32(0.1)), b.constant("z", np.uint8(7))
    image = b.op("DequantizeLinear", ["x", scale, zero], "image_dq")
    scale_y, zero_y = b.constant("sy", np.float32(0.5)), b.constant("zy", np.uint8(128))
    y = b.op("QuantizeLinear", [b.conv(image, b.weights()), scale_y, zero_y], "y")
    model = b.model(y)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    fixed = fix(model)
    assert failing(fixed.model) == set()
    assert fixed.model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert fixed.equality.flips == 0


def test_function_called_twice_is_inlined():
    body = [
        onnx.helper.make_node("QuantizeLinear", ["v", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
    ]
    b = Builder()
    b.constant("s", np.float32(0.5))
    b.constant("z", np.int8(0))
    for source, result in (("x", "a"), ("y", "c")):
        b.nodes.append(onnx.helper.make_node("Fake", [source, "s", "z"], [result], domain="local", name=f"fq_{result}"))
        if source == "x":
            b.op("Conv", ["a", b.weights()], "y", pads=[1, 1, 1, 1])
    model = b.model("c")
    model.functions.append(
        onnx.helper.make_function("local", "Fake", ["v", "s", "z"], ["w"], body, [onnx.helper.make_opsetid("", 20)])
    )
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    assert "duplicate-quantizers" in failing(model)
    fixed = fix(model)
    assert failing(fixed.model) == set()
    assert not fixed.model.functions
    assert fixed.equality.identical == 1


def test_codes_that_a_branch_reads_stay_as_they_are():
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        branched (float[1, 3, h, w] x) => (float[1, 3, h, w] y)
        <float s = {0.02}, uint8 z = {90}, bool taken = {1}>
        {
            q = QuantizeLinear (x, s, z)
            y = If (taken) <
                then_branch = doubled () => (float[1, 3, h, w] a) { d = DequantizeLinear (q, s, z) a = Add (d, d) },
                else_branch = plain () => (float[1, 3, h, w] b) { b = DequantizeLinear (q, s, z) }
            >
        }
    """)
    fixed = fix(model)
    assert fixed.done == {}
    assert "a branch of an If or the body of a loop reads its codes" in fixed.left[0]


def narrow_graph(kind, zero, *, scale=None, by_attribute=False, relu=False, half=False):
    """Activations of some type in front of a convolution and behind it."""
    b, scale = Builder(21), np.float32(3.0) if scale is None else scale

    def quantized(x, name):
        parameters, attributes = [b.constant(f"{name}_s", scale)], {}
        if by_attribute:
            attributes = {"output_dtype": kind}
        else:
            parameters.append(b.constant(f"{name}_z", np.full(np.shape(scale), zero), kind))
        q = b.op("QuantizeLinear", [x, *parameters], f"{name}_q", **attributes)
        return b.op("DequantizeLinear", [q, *parameters], f"{name}_dq")

    x = quantized(b.op("Cast", ["x"], "halves", to=TensorProto.FLOAT16) if half else "x", "a")
    x = b.op("Relu", [x], "relu") if relu else x
    weights = b.weights(scale=np.full(CHANNELS, 0.01, np.float16) if half else None)
    y = quantized(b.conv(x, weights), "o")
    return b.model(b.op("Cast", [y], "y", to=TensorProto.FLOAT) if half else y)


@pytest.mark.parametrize("scale", [0.022, 0.025, 0.03])
def test_a_code_before_a_pixel_shuffle_that_rounds_the_other_way_is_one_code_and_moves_nothing_behind_it(scale):
    b = Builder()
    x = b.qdq(b.op("Mul", ["x", b.constant("m", np.float32(0.37))], "scaled"), "a", scale, np.uint8(101))
    x = b.op("DepthToSpace", [x], "shuffled", blocksize=2)
    fixed = fix(b.model(b.conv(x, b.weights((3, CHANNELS // 4, 3, 3)))))
    assert fixed.left == ()
    assert fixed.equality.codes > 0
    assert fixed.equality.flips > 0
    assert fixed.equality.error < 1e-5


@pytest.mark.parametrize("scale", [0.001, 1 / 255, 3.0, 100.0])
@pytest.mark.parametrize(("kind", "zero"), [("UINT8", 0), ("UINT8", 1), ("UINT8", 200), ("INT8", -128), ("INT8", 5)])
def test_images_of_the_proof_go_through_all_codes_of_any_scale(kind, zero, scale):
    fixed = fix(narrow_graph(TensorProto.DataType.Value(kind), zero, scale=np.float32(scale)))
    assert (failing(fixed.model), fixed.left) == (set(), ())
    assert fixed.equality.codes > 0
    assert fixed.equality.error < 1e-5


NARROW = [("INT4", 0), ("INT4", -8), ("INT4", 3), ("UINT4", 0), ("UINT4", 8), ("UINT4", 15), ("UINT4", 5)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kind", "zero"), NARROW)
def test_activations_of_four_bits_become_int8_codes_with_bounds(kind, zero, relu, half):
    scale = np.float16(0.3) if half else np.float32(3.0)
    fixed = fix(narrow_graph(TensorProto.DataType.Value(kind), zero, scale=scale, relu=relu, half=half))
    assert (failing(fixed.model), fixed.left) == (set(), ())
    assert fixed.equality.codes > 0
    assert (fixed.equality.flips, fixed.equality.identical) == (0, 1)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8"])
def test_a_type_that_an_attribute_says_is_kept(kind, relu):
    fixed = fix(narrow_graph(TensorProto.DataType.Value(kind), 0, by_attribute=True, relu=relu))
    assert (failing(fixed.model), fixed.left, fixed.equality.identical) == (set(), (), 1)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_four_bits_with_a_scale_a_channel_are_rounded_in_float(kind):
    scales = np.linspace(1, 4, CHANNELS, dtype=np.float32)
    fixed = fix(narrow_graph(TensorProto.DataType.Value(kind), 3, scale=scales))
    assert "one scale or zero point a channel" in fixed.left[0]
    assert fixed.equality.identical == 1


@pytest.mark.parametrize(("kind", "is_fixed"), [("INT4", True), ("UINT4", True), ("INT8", True), ("UINT8", False)])
def test_quantizers_of_halves_are_rewritten_where_bounds_are_enough(kind, is_fixed):
    fixed = fix(narrow_graph(TensorProto.DataType.Value(kind), 0, scale=np.float16(0.3), half=True))
    assert fixed.equality.identical == 1
    assert (failing(fixed.model) == set()) == is_fixed
    assert fixed.left == () if is_fixed else all("its scale is not float32" in what for what in fixed.left)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8", "INT16"])
def test_codes_that_others_read_are_named_whatever_their_type(kind):
    number = TensorProto.DataType.Value(kind)
    read = narrow_graph(number, 0)
    read.graph.output.append(helper.make_tensor_value_info("a_q", number, None))
    fixed = fix(read)
    assert ("an output of such codes" in "".join(fixed.left)) == (kind != "INT8")
    assert fixed.equality.identical == 1
    b = Builder(21)
    parameters = [b.constant("s", np.float32(3)), b.constant("z", 0, number)]
    turned = b.op("Transpose", [b.op("QuantizeLinear", ["x", *parameters], "a_q")], "turned", perm=[0, 1, 3, 2])
    fixed = fix(b.model(b.conv(b.op("DequantizeLinear", [turned, *parameters], "a_dq"), b.weights())))
    assert fixed.left == ("a_q: turned (Transpose) computes with its codes",)
    assert fixed.equality.identical == 1


def test_inputs_of_four_bits_are_refused_in_words():
    b = Builder(21)
    b.input_type = TensorProto.INT4
    x = b.op("DequantizeLinear", ["x", b.constant("s", np.float32(3)), b.constant("z", 0, TensorProto.INT4)], "a_dq")
    with pytest.raises(InputError, match=r"the input x holds codes of less than 8 bits"):
        fix(b.model(b.conv(x, b.weights())))


def test_graph_without_quantizers_is_refused():
    b = Builder()
    with pytest.raises(InputError, match=r"nothing to fix: .*odm-deploy quantize FILE\.onnx"):
        fix(b.model(b.conv("x", b.float_weights())))


def test_quantizers_in_branches_alone_are_said_to_be_there():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[1,3,"h","w"] x, bool c) => (float[1,3,"h","w"] y) <float s = {0.1}, int8 z = {0}> {
            [choice] y = If (c) <
                then_branch = t () => (float[1,3,"h","w"] a) {
                    q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
                },
                else_branch = e () => (float[1,3,"h","w"] b) { b = Identity(x) }
            >
        }
    """)
    assert quantizing_branches(model) == ["If choice"]
    with pytest.raises(InputError, match="only inside of If choice, and branches are kept as they are"):
        fix(model)


def test_proof_fails_for_another_graph():
    original, wrong = (onnx.shape_inference.infer_shapes(LEGAL["plain"]()) for _ in range(2))
    tensor = next(each for each in wrong.graph.initializer if each.name == "weight_q")
    changed = onnx.numpy_helper.to_array(tensor).copy()
    changed[3] += 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    assert compare(original, original, original, Changes()).holds
    assert not compare(original, original, wrong, Changes()).holds


def test_wrong_rewriting_is_not_returned(monkeypatch):
    def spoil(editor, constants, changes: Changes, weights):
        value = editor.graph.initializers["weight_s"]
        value.const_value = ir.tensor(2 * value.const_value.numpy(), name="weight_s")

    monkeypatch.setattr("odm_deploy.lowering.fixing.fix_activations", spoil)
    with pytest.raises(GateError, match="not the original"):
        fix(LEGAL["plain"]())
