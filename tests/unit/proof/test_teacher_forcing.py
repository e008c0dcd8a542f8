"""The cut-open graph: what goes in, what comes out, and that the original stays whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from odm_deploy.errors import InputError
from odm_deploy.lowering.metadata import Tap, write_taps
from odm_deploy.proof.teacher_forcing import GIVEN, codes_from, feeds_for, force_by_teacher
from tests.factories import exact_model, lowered, tiny_model


@pytest.fixture(scope="module")
def forced():
    return force_by_teacher(lowered(tiny_model(8)))


def test_codes_are_outputs_and_given_codes_are_inputs(forced):
    inputs = {value.name: value.type.tensor_type for value in forced.model.graph.input}
    outputs = {value.name for value in forced.model.graph.output}
    assert outputs == {"output", *(tap.codes for tap in forced.taps), *forced.given_sources}
    assert set(inputs) == {
        "input",
        *(tap.codes + GIVEN for tap in forced.taps),
        *(source + GIVEN for source in forced.given_sources),
    }
    for tap in forced.taps:
        assert inputs[tap.codes + GIVEN].elem_type == onnx.TensorProto.INT8
        assert len(inputs[tap.codes + GIVEN].shape.dim) == 4


def test_every_dequantizer_of_activations_reads_given_codes(forced):
    constants = {tensor.name for tensor in forced.model.graph.initializer}
    read = {node.input[0] for node in forced.model.graph.node if node.op_type == "DequantizeLinear"} - constants
    assert read == {tap.codes + GIVEN for tap in forced.taps}


def test_residual_connections_read_the_references_features(forced):
    # The stream between blocks feeds a quantizer and an addition; only the addition is fed.
    assert len(forced.given_sources) == 2
    for source in forced.given_sources:
        readers = [node.op_type for node in forced.model.graph.node if source + GIVEN in node.input]
        assert readers == ["Add"] * len(readers)
        assert readers


def test_sources_of_half_precision_graphs_are_given_in_half_precision():
    half = force_by_teacher(lowered(tiny_model(8), precision="fp16"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in half.model.graph.input}
    assert half.given_sources
    for source, kind in half.given_sources.items():
        expected = onnx.TensorProto.FLOAT16 if kind == "float16" else onnx.TensorProto.FLOAT
        assert kinds[source + GIVEN] == expected
    assert "float16" in half.given_sources.values()


def test_given_codes_are_shifted_and_padded_like_the_quantizers():
    tap = Tap("layer", "x", "codes", code_offset=128, zero_code=3, padding=(1, 1))
    proto = lowered(tiny_model())
    forced = force_by_teacher(proto)
    forced = type(forced)(forced.model, [tap], {"x": "float16"})
    codes = np.array([[[[0, 255]]]], np.uint8)
    source = np.array([[[[0.1, 2.0]]]], np.float32)
    feeds = feeds_for(forced, {"layer": source}, {"layer": codes})
    border = 3 - 128
    assert feeds["codes.given"].tolist() == [[[[border] * 4, [border, -128, 127, border], [border] * 4]]]
    assert feeds["codes.given"].dtype == np.int8
    assert feeds["x.given"].dtype == np.float16
    np.testing.assert_array_equal(codes_from(tap, feeds["codes.given"]), codes)


def test_the_graph_itself_is_not_changed():
    proto = lowered(exact_model())
    before = proto.SerializeToString(deterministic=True)
    force_by_teacher(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_taps_that_do_not_fit_the_graph_are_refused():
    proto = lowered(tiny_model())
    metadata: dict[str, str] = {}
    (entry,) = proto.metadata_props
    codes = next(node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear")
    write_taps(metadata, [Tap("layer", "nowhere", codes, 0, 0)])
    entry.value = metadata["odm.taps"]
    with pytest.raises(InputError, match="no path from its codes to its source"):
        force_by_teacher(proto)


def test_taps_of_codes_that_are_not_in_the_graph_are_refused():
    proto = lowered(tiny_model())
    metadata: dict[str, str] = {}
    write_taps(metadata, [Tap("layer", "input", "nowhere", 0, 0)])
    proto.metadata_props[0].value = metadata["odm.taps"]
    with pytest.raises(InputError, match="metadata is damaged"):
        force_by_teacher(proto)
