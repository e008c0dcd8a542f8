"""Layer tables: the VERBOSE log of TensorRT-RTX and the inspector's JSON of TensorRT 10 and 11."""

from __future__ import annotations

import json

import pytest

from odm_deploy.building.layer_table import find_compute_layer, normalize_type, parse_inspector, parse_log
from odm_deploy.errors import InputError


def tensor(name, dims, dtype, layout="(NHWC) Channel major format"):
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: {layout} }}"
    )


def row(name, kind, inputs, constants, outputs, metadata):
    lists = ", ".join(
        f"{title}: [{(' ' + ', '.join(items)) if items else ''}]"
        for title, items in (("Inputs", inputs), ("Constants", constants), ("Outputs", outputs))
    )
    return f"Name: {name}, LayerType: {kind}, {lists}, TacticName: tactic_0x1, StreamId: 0, Metadata: {metadata}"


CONV = row(
    "conv_myl0_2",
    "correlation",
    [tensor("x", "1,16,-1,-1", "Int8")],
    [tensor("w", "16,16,3,3", "Int8"), tensor("s", "1,16,1,1", "Float")],
    [tensor("y", "1,16,-1,-1", "Float")],
    "[ONNX Layer: conv[0]/body, 1][ONNX Layer: a_dq]",
)
POINTWISE = row(
    "__myl_MulAddRoun_myl0_1",
    "kgen",
    [tensor("y", "1,16,-1,-1", "Float")],
    [],
    [tensor("q", "1,16,-1,-1", "Int8")],
    "[ONNX Layer: conv[0]/body, 1][ONNX Layer: b_q]",
)


def log(*rows):
    return ["[INFO] before", "[VERBOSE] Layers:", *rows, "", "I/O Tensors:", " Name: x, IOMode: Input", "[INFO] after"]


def test_rows_become_records():
    pointwise, conv = parse_log(log(POINTWISE, CONV))
    assert (conv.name, conv.kind, conv.precision, conv.is_compute) == ("conv_myl0_2", "correlation", "int8", True)
    assert conv.onnx_nodes == ("conv[0]/body, 1", "a_dq")
    assert (pointwise.precision, pointwise.is_compute) == ("fp32", False)


def test_the_last_table_counts_and_a_log_without_one_is_empty():
    assert [layer.name for layer in parse_log([*log(POINTWISE), *log(CONV)])] == ["conv_myl0_2"]
    assert parse_log(["[INFO] nothing here"]) == []


def test_product_layer_wins_over_the_layer_of_its_bias():
    found = find_compute_layer(parse_log(log(POINTWISE, CONV)), "conv[0]/body, 1")
    assert found is not None
    assert found.kind == "correlation"
    assert find_compute_layer(parse_log(log(POINTWISE)), "conv[0]/body, 1") is not None
    assert find_compute_layer(parse_log(log(POINTWISE, CONV)), "other") is None


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "constants", "precision"),
    [
        ("correlation", "c", ["Int8"], ["Int8", "Float"], "int8"),
        ("correlation", "c", ["Int8"], ["Float", "Float"], "fp32"),
        ("correlation", "c", ["Half"], ["Half"], "fp16"),
        ("correlation", "c", ["Int8", "Half"], ["Int8", "Float"], "int8"),
        ("gemm", "g", ["Int8", "Int8"], ["Float"], "int8"),
        ("gemm", "g", ["Float", "Int8"], [], "fp32"),
        # A generated kernel that casts its codes to float before it multiplies.
        ("runtime_fusion", "__myl_CastMulCastMulCastFc_myl0_1", ["Int8"], ["Int8", "Float"], "fp32"),
        ("kgen", "__myl_Move_myl0_1", ["Int8"], [], "int8"),
        ("shape_call", "s", [], [], "none"),
    ],
)
def test_precision_is_that_of_the_arithmetic(kind, name, inputs, constants, precision):
    tensors = [[tensor(f"t{index}", "1", dtype) for index, dtype in enumerate(side)] for side in (inputs, constants)]
    (layer,) = parse_log(log(row(name, kind, *tensors, [], "")))
    assert layer.precision == precision


def test_inspector_json_of_classic_and_compiler_layers():
    document = {
        "Layers": [
            {
                "Name": "conv1 + relu1",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {
                        "Name": "x",
                        "Location": "Device",
                        "Dimensions": [1, 64, 8, 8],
                        "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                    },
                    {"Name": "r", "Dimensions": [1, 64, 8, 8], "Format/Datatype": "Channel major FP16 format"},
                ],
                "Outputs": [{"Name": "y", "Dimensions": [1, 64, 8, 8], "Format/Datatype": "Channel major FP16 format"}],
                "ParameterType": "Convolution",
                "Weights": {"Type": "Int8", "Count": 36864},
                "TacticName": "sm80_xmma",
                "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu1]",
            },
            {
                "Name": "mm_myl0_3",
                "LayerType": "gemm",
                "Inputs": [{"Name": "a", "Dimensions": [4, 8], "Format": "Row major linear", "Datatype": "Half"}],
                "Constants": [{"Name": "w", "Dimensions": [8, 8], "Datatype": "Half"}],
                "Outputs": [],
                "Metadata": "[ONNX Layer: mm]",
            },
        ],
        "I/O Tensors": [{"Name": "x"}],
    }
    conv, gemm = parse_inspector(json.dumps(document))
    assert (conv.precision, conv.is_compute, conv.onnx_nodes) == ("int8", True, ("conv1", "relu1"))
    assert (gemm.precision, gemm.is_compute, gemm.onnx_nodes) == ("fp16", True, ("mm",))


def test_inspector_without_details_lists_names():
    (layer,) = parse_inspector('{"Layers": ["conv1 + relu1"], "Bindings": ["x"]}')
    assert (layer.name, layer.precision) == ("conv1 + relu1", "unknown")


@pytest.mark.parametrize("text", ["", "[]", "{}", '"text"'])
def test_what_is_no_inspector_output_is_an_input_error(text):
    with pytest.raises(InputError):
        parse_inspector(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("BFloat16", "bf16"),
        ("UInt8", "uint8"),
        ("Row major linear INT8 format (kLINEAR)", "int8"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_type_names_are_normalized(text, name):
    assert normalize_type(text) == name
