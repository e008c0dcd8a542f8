"""Every rule finds its trap, names the node and the layer, and keeps quiet about legal graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from odm_deploy.lowering.lint import RULES, Severity, lint
from tests.qdq_graphs import LEGAL, TRAPS, Builder

SEVERITY_OF_FATE = {
    "refused": {Severity.ERROR},
    "crashed": {Severity.ERROR},
    # INFO: what has none of the work.
    "float": {Severity.SILENT_FLOAT, Severity.INFO},
    "unknown": {Severity.WARNING},
    "int8": {Severity.SATURATES, Severity.WARNING, Severity.INFO},
}


@pytest.mark.parametrize("label", TRAPS)
def test_rule_finds_its_trap(label):
    trap = TRAPS[label]
    found = [finding for finding in lint(trap.build()) if finding.rule == trap.rule]
    assert [finding.node for finding in found] == [trap.node]
    assert found[0].severity in SEVERITY_OF_FATE[trap.fate]
    assert found[0].message
    assert found[0].fix


@pytest.mark.parametrize("label", [label for label, trap in TRAPS.items() if trap.fate == "float"])
def test_float_fallback_names_the_layer_that_suffers(label):
    trap = TRAPS[label]
    assert [finding.layers for finding in lint(trap.build()) if finding.rule == trap.rule] == [("layer",)]


@pytest.mark.parametrize("label", LEGAL)
def test_legal_graph_has_no_findings(label):
    assert lint(LEGAL[label]()) == []


def test_every_rule_has_a_trap_graph_and_an_explanation():
    assert {trap.rule for trap in TRAPS.values()} == set(RULES)
    for rule in RULES.values():
        assert len(rule.trap) > 40
        assert rule.fix


def test_findings_come_worst_first():
    b = Builder(opset=21)
    findings = lint(b.model(b.conv(b.qdq(b.op("Relu", ["x"], "relu"), "a", np.array([0.0], np.float32)), b.weights())))
    order = list(Severity)
    positions = [order.index(finding.severity) for finding in findings]
    assert positions == sorted(positions)
    assert len(set(positions)) >= 4


def test_float_graph_has_no_findings():
    b = Builder(opset=21)
    assert lint(b.model(b.conv("x", b.float_weights()))) == []


def test_float_layer_after_a_quantized_one_is_no_finding():
    b = Builder()
    quantized = b.conv(b.qdq("x", "a"), b.weights())
    assert lint(b.model(b.op("Conv", [quantized, b.float_weights()], "tail", pads=[1, 1, 1, 1]))) == []


def test_nodes_without_names_are_called_what_tensorrt_calls_them():
    b = Builder()
    model = b.model(b.conv("x", b.weights()))
    for node in model.graph.node:
        node.name = ""
    assert lint(model)[0].node == "node_of_layer"


def test_quantizers_inside_local_functions_are_seen():
    body = [
        helper.make_node("QuantizeLinear", ["v", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
    ]
    opsets = [helper.make_opsetid("", 20)]
    b = Builder()
    b.constant("s", np.array([0.5], np.float32))
    b.constant("z", np.int8(0))
    b.nodes.append(helper.make_node("FakeQuantize", ["x", "s", "z"], ["a"], domain="local", name="fq"))
    model = b.model(b.conv("a", b.weights()))
    model.functions.append(helper.make_function("local", "FakeQuantize", ["v", "s", "z"], ["w"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert [finding.rule for finding in lint(model)] == ["scale-shape"]


def test_one_range_that_calibration_cuts_off_is_no_dropped_zero_point():
    # ReLU6 with a percentile scale: the bounds span 190 steps, not the 255 of an asymmetric quantizer.
    b = Builder()
    x = b.op("Min", [b.op("Relu", ["x"], "relu"), b.constant("six", np.float32(6))], "relu6")
    assert lint(b.model(b.conv(b.qdq(x, "a", 4 / 127), b.weights()))) == []


def test_int4_weights_of_a_matrix_product_are_legal():
    b = Builder(opset=21)
    rows = b.op("Transpose", ["x"], "rows", perm=[0, 2, 3, 1])
    weights = b.weights((16, 16), axis=1, kind=TensorProto.INT4, bits=4)
    findings = lint(b.model(b.op("MatMul", [b.qdq(rows, "a"), weights], "layer")))
    assert [finding.rule for finding in findings] == ["opset"]


def test_path_and_model_give_the_same_findings(tmp_path):
    model = TRAPS["dead channel"].build()
    onnx.save(model, tmp_path / "model.onnx")
    assert lint(tmp_path / "model.onnx") == lint(model)
