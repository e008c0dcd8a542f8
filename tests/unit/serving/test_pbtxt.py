"""Protobuf's text format, parsed back by protobuf itself with messages every installation has."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf import text_format

from odm_deploy.serving.pbtxt import Enum, to_pbtxt


def test_nested_messages_lists_and_strings_come_back():
    message = {
        "ir_version": 9,
        "producer_name": 'a "quoted" näme\\\n',
        "opset_import": [{"domain": "", "version": 20}, {"domain": "odm", "version": 1}],
        "graph": {"node": [{"input": ["x", "y"], "attribute": {"name": "to", "type": Enum("INT"), "i": -3}}]},
    }
    parsed = text_format.Parse(to_pbtxt(message), onnx.ModelProto())
    assert parsed.producer_name == message["producer_name"]
    assert [(item.domain, item.version) for item in parsed.opset_import] == [("", 20), ("odm", 1)]
    (node,) = parsed.graph.node
    assert list(node.input) == ["x", "y"]
    assert (node.attribute[0].type, node.attribute[0].i) == (onnx.AttributeProto.INT, -3)


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (False, "false"), (0, "0"), ("", '""'), ([], "[]")])
def test_values_that_are_easily_mistaken_for_others(value, text):
    assert to_pbtxt({"field": value}) == f"field: {text}\n"
