"""Every converted operator computes what ONNX's own reference does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.onnx_files import convert_graph
from odm_deploy.networks.onnx_network import OnnxNetwork, pack_graph
from odm_deploy.networks.onnx_operators import TENSOR_OPERATORS
from odm_deploy.networks.onnx_sizes import SIZE_OPERATORS

RNG = np.random.default_rng(5)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


# Operator, constants after the image (None skips an input), attributes. The image is [2, 8, 6, 10].
CASES = {
    "Conv": ("Conv", [floats(4, 8, 3, 3), floats(4)], {"pads": [1, 1, 1, 1]}),
    "Conv without bias": ("Conv", [floats(4, 8, 3, 3)], {}),
    "Conv padded on one side": ("Conv", [floats(4, 8, 2, 2), floats(4)], {"pads": [1, 0, 0, 1]}),
    "Conv auto_pad": ("Conv", [floats(4, 8, 4, 4)], {"auto_pad": "SAME_LOWER"}),
    "Conv groups, strides, dilations": ("Conv", [floats(8, 2, 3, 3)],
                                        {"group": 4, "strides": [2, 1], "dilations": [1, 2]}),
    "ConvTranspose": ("ConvTranspose", [floats(8, 3, 4, 4), floats(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "ConvTranspose output_padding": ("ConvTranspose", [floats(8, 3, 3, 3)],
                                     {"strides": [2, 2], "output_padding": [1, 1]}),
    "MatMul": ("MatMul", [floats(10, 7)], {}),
    "MatMul of stacked matrices": ("MatMul", [floats(8, 10, 3)], {}),
    "Add scalar": ("Add", [np.float32(0.3)], {}),
    "Mul by channel": ("Mul", [floats(8, 1, 1)], {}),
    "Div": ("Div", [floats(8, 1, 1)], {}),
    "Pow": ("Pow", [np.float32(2)], {}),
    "Max": ("Max", [np.float32(0.1)], {}),
    "Min with a tensor": ("Min", [floats(8, 1, 1)], {}),
    "PRelu by channel": ("PRelu", [floats(8, 1, 1)], {}),
    "PRelu scalar": ("PRelu", [np.full((1,), 0.2, np.float32)], {}),
    "LeakyRelu": ("LeakyRelu", [], {"alpha": 0.2}),
    "Clip": ("Clip", [np.float32(-0.5), np.float32(0.5)], {}),
    "Clip above": ("Clip", [None, np.float32(0.5)], {}),
    "HardSigmoid": ("HardSigmoid", [], {}),
    "Softmax": ("Softmax", [], {"axis": 1}),
    "ReduceMean": ("ReduceMean", [ints(2, 3)], {}),
    "ReduceMax": ("ReduceMax", [ints(1)], {"keepdims": 0}),
    "GlobalAveragePool": ("GlobalAveragePool", [], {}),
    "AveragePool": ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool padded": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "MaxPool": ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "Pad constant": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(1.5)], {}),
    "Pad reflect": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "Pad edge": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    "Pad of named axes": ("Pad", [ints(1, 2), None, ints(3)], {"mode": "edge"}),
    "DepthToSpace CRD": ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    "DepthToSpace DCR": ("DepthToSpace", [], {"blocksize": 2}),
    "SpaceToDepth": ("SpaceToDepth", [], {"blocksize": 2}),
    "Resize nearest": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)],
                       {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    "Resize nearest half_pixel": ("Resize", [None, np.array([1, 1, 3, 3], np.float32)], {"mode": "nearest"}),
    "Resize bilinear": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    "Resize bilinear corners": ("Resize", [None, None, ints(2, 8, 13, 21)],
                                {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "Resize bicubic": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "cubic", "cubic_coeff_a": -0.75}),
    "Resize bilinear asymmetric": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)],
                                   {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    "Resize bilinear asymmetric to sizes": ("Resize", [None, None, ints(2, 8, 9, 25)],
                                            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    "Resize bicubic of Keys": ("Resize", [None, np.array([1, 1, 3, 3], np.float32)],
                               {"mode": "cubic", "cubic_coeff_a": -0.5}),
    "Resize bicubic of what is inside": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)],
                                         {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}),
    "Resize nearest to a half": ("Resize", [None, np.array([1, 1, 0.5, 0.5], np.float32)],
                                 {"mode": "nearest", "nearest_mode": "ceil"}),
    **{
        f"Resize nearest {mode} {place}": ("Resize", [None, np.array([1, 1, 2, 2], np.float32)],
            {"mode": "nearest", "nearest_mode": mode, "coordinate_transformation_mode": place})
        for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        for place in ("half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
    },
    "Resize channels last": ("Resize", [None, np.array([1, 2, 2, 1], np.float32)], {"mode": "linear"}),
    "Resize of named axes": ("Resize", [None, np.array([2, 3], np.float32)], {"mode": "linear", "axes": [2, 3]}),
    "Reshape": ("Reshape", [ints(0, 4, -1, 10)], {}),
    "Transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    "Slice with steps": ("Slice", [ints(1, 0), ints(2**40, -1), ints(2, 3), ints(2, 3)], {}),
    "Slice backwards": ("Slice", [ints(-1), ints(-(2**40)), ints(3), ints(-1)], {}),
    "Slice of channels backwards": ("Slice", [ints(7), ints(-(2**40)), ints(1), ints(-1)], {}),
    "Slice of some channels backwards": ("Slice", [ints(-2), ints(0), ints(1), ints(-3)], {}),
    "Slice of some rows backwards": ("Slice", [ints(-1), ints(-4), ints(2), ints(-1)], {}),
    "Gather": ("Gather", [ints(2, 0, 1)], {"axis": 1}),
    "Gather from the end": ("Gather", [ints(-1, 0, -2)], {"axis": 1}),
    "Gather one": ("Gather", [np.int64(3)], {"axis": 2}),
    "Gather a table": ("Gather", [np.array([[0, 1], [-1, 2]])], {"axis": 1}),
    "Gather many from the end": ("Gather", [np.arange(-8, 64) % 8 - 8], {"axis": 1}),
    "GatherElements": ("GatherElements", [RNG.integers(-6, 6, (2, 8, 3, 10))], {"axis": 2}),
    "GatherND": ("GatherND", [np.array([[0, 3], [1, -1]])], {}),
    "GatherND in batches": ("GatherND", [np.array([[[3], [2]], [[1], [0]]])], {"batch_dims": 1}),
    "GridSample": ("GridSample", [RNG.uniform(-1, 1, (2, 5, 7, 2)).astype(np.float32)],
                   {"mode": "linear", "padding_mode": "border", "align_corners": 1}),
    "ArgMax": ("ArgMax", [], {"axis": 1}),
    "TopK": ("TopK", [ints(3)], {"axis": 1}),
    "CumSum": ("CumSum", [np.int64(1)], {}),
    "CumSum backwards": ("CumSum", [np.int64(2)], {"reverse": 1, "exclusive": 1}),
    "Mod": ("Mod", [np.float32(0.7)], {"fmod": 1}),
    "ReduceProd": ("ReduceProd", [ints(1, 3)], {}),
    "ReduceSumSquare": ("ReduceSumSquare", [ints(1)], {}),
    "ReduceL1": ("ReduceL1", [ints(1)], {}),
    "ReduceLogSumExp": ("ReduceLogSumExp", [ints(1)], {}),
    "LogSoftmax": ("LogSoftmax", [], {"axis": 1}),
    "LpNormalization": ("LpNormalization", [], {"axis": 1}),
    "ThresholdedRelu": ("ThresholdedRelu", [], {"alpha": 0.3}),
    "Celu": ("Celu", [], {"alpha": 0.5}),
    "GreaterOrEqual": ("GreaterOrEqual", [np.float32(0.1)], {}),
    "LessOrEqual": ("LessOrEqual", [np.float32(0.1)], {}),
    "IsNaN": ("IsNaN", [], {}),
    "Expand": ("Expand", [ints(2, 8, 6, 10)], {}),
    "Tile": ("Tile", [ints(1, 2, 1, 1)], {}),
    "Unsqueeze": ("Unsqueeze", [ints(0, 3)], {}),
    "Flatten": ("Flatten", [], {"axis": 2}),
    "LayerNormalization": ("LayerNormalization", [floats(10), floats(10)], {}),
    "InstanceNormalization": ("InstanceNormalization", [floats(8), floats(8)], {}),
    "BatchNormalization": ("BatchNormalization", [floats(8), floats(8), floats(8), np.abs(floats(8))], {}),
    "Gelu": ("Gelu", [], {}),
    "Gelu tanh": ("Gelu", [], {"approximate": "tanh"}),
    "GroupNormalization by groups": ("GroupNormalization", [floats(2), floats(2)], {"num_groups": 2}),
    "Mean": ("Mean", [floats(10)], {}),
    **{name: (name, [], {}) for name in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Neg", "Floor", "Softplus",
                                          "Selu", "Atan", "Softsign")},
}  # fmt: skip


NEWER = {
    "GroupNormalization": ("GroupNormalization", [floats(8), floats(8)], {"num_groups": 4}),
    "RMSNormalization": ("RMSNormalization", [floats(10)], {}),
    "Swish": ("Swish", [], {"alpha": 0.7}),
}
"""Operators, or forms of them, that came with opset 21 to 24."""


def graph_of(op, constants, attributes, opset=20, **extra):
    names = ["" if value is None else f"c{index}" for index, value in enumerate(constants)]
    stored = [
        numpy_helper.from_array(np.asarray(value), name) for value, name in zip(constants, names, strict=True) if name
    ]
    outputs = ["y", "places"] if op == "TopK" else ["y"]
    node = helper.make_node(op, ["x", *names], outputs, name="node", **attributes)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, "h", "w"])
    output = onnx.ValueInfoProto(name="y")
    return helper.make_model(
        helper.make_graph([node], "graph", [image], [output], stored),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
        **extra,
    )


@pytest.mark.parametrize("label", [*CASES, *NEWER])
def test_operator_agrees_with_the_reference(label):
    model = graph_of(*CASES[label]) if label in CASES else graph_of(*NEWER[label], opset=24)
    x = floats(2, 8, 6, 10)
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    module, text = convert_graph(model)
    with torch.no_grad():
        got = module(torch.from_numpy(x)).numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got * 1, wanted * 1, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))
    # The text and the state build the same again.
    again = OnnxNetwork(text)
    again.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(torch.from_numpy(x)), torch.from_numpy(got))


@pytest.mark.parametrize("attributes", [{}, *({"axis": axis} for axis in (0, 1, 2, 3, -1, -2))])
def test_softmax_before_version_13_takes_all_axes_from_one_on(attributes):
    model = graph_of("Softmax", [], attributes)
    model.opset_import[0].version = 12
    x = floats(2, 8, 6, 10)
    axis = attributes.get("axis", 1) % 4
    powers = np.exp(x.astype(np.float64)).reshape(*x.shape[:axis], -1)
    wanted = (powers / powers.sum(-1, keepdims=True)).reshape(x.shape)
    module, text = convert_graph(model)
    for network in (module, OnnxNetwork(text)):
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5)


def test_what_is_counted_from_the_end_of_any_height_is_exported_so():
    model = graph_of("Slice", [ints(-1), ints(-(2**40)), ints(2), ints(-1)], {})
    nodes = [helper.make_node("Gather", ["y", "last"], ["z"], axis=2), helper.make_node("Add", ["x", "z"], ["sum"])]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(ints(-1), "last"))
    model.graph.output[0].name = "sum"
    module, _ = convert_graph(model)
    rows = torch.export.Dim("rows", min=4, max=64)
    exported = torch.export.export(module.eval(), (torch.rand(1, 8, 6, 10),), dynamic_shapes=({2: rows},)).module()
    x = floats(1, 8, 9, 10)
    assert np.array_equal(exported(torch.from_numpy(x)).numpy(), x + x[:, :, :1])


def test_what_is_known_of_sizes_is_known_of_pixels():
    assert set(SIZE_OPERATORS) <= set(TENSOR_OPERATORS)


def test_linear_resize_before_version_11_takes_places_by_the_factor_alone():
    model = graph_of("Upsample", [np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"})
    model.opset_import[0].version = 9
    x = floats(2, 8, 6, 10)
    with torch.no_grad():
        got = convert_graph(model)[0](torch.from_numpy(x)).numpy()
    assert np.allclose(got[..., ::2, ::2], x) and np.allclose(got[..., ::2, 1:-1:2], (x[..., :-1] + x[..., 1:]) / 2)


def test_uneven_split_and_its_parts():
    split = helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1)
    joined = helper.make_node("Concat", ["b", "a"], ["y"], axis=1)
    model = graph_of("Identity", [], {})
    del model.graph.node[:]
    model.graph.node.extend([split, joined])
    model.graph.initializer.append(numpy_helper.from_array(ints(3, 5), "sizes"))
    x = floats(1, 8, 4, 4)
    module, _ = convert_graph(model)
    assert np.array_equal(module(torch.from_numpy(x)).numpy(), np.concatenate([x[:, 3:], x[:, :3]], 1))


def test_layers_with_one_weight_are_one_layer():
    model = graph_of("Conv", [floats(8, 8, 3, 3)], {"pads": [1, 1, 1, 1]})
    model.graph.node.append(helper.make_node("Conv", ["y", "c0"], ["z"], pads=[1, 1, 1, 1]))
    model.graph.output[0].name = "z"
    module, _ = convert_graph(model)
    assert len(module.layers) == 1


@pytest.mark.parametrize("op", ["NonMaxSuppression", "RoiAlign"])
def test_operator_nobody_converts_is_named(op):
    model = graph_of("Relu", [], {})
    model.graph.node[0].op_type = op
    with pytest.raises(UsageError, match=op):
        OnnxNetwork(pack_graph(model))


def test_text_that_is_no_graph_is_refused():
    for text in ("?", "AAAA", "eJwLSS0uAQAD3QGB"):
        with pytest.raises(InputError, match="damaged"):
            OnnxNetwork(text)


def test_graph_that_unpacks_to_more_than_any_graph_is_refused():
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(2**27))).decode()
    with pytest.raises(InputError, match="damaged"):
        OnnxNetwork(bomb)


def test_onnx_model_of_nothing_is_refused():
    with pytest.raises(InputError):
        OnnxNetwork(pack_graph(onnx.ModelProto()))
