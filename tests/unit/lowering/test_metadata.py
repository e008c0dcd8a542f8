"""Taps: every layer's quantizer can be found in the lowered graph, whatever passes came after."""

from __future__ import annotations

import json

import onnx
import pytest

from odm_deploy.errors import InputError
from odm_deploy.lowering.metadata import Tap, read_taps, rename_source, write_taps
from tests.factories import lowered, model_of_all_kinds, tiny_model

TAPS = [Tap("a", "input", "a.codes", 3, 3), Tap("b", "x", "b.codes", 128, 0, padding=(1, 2))]


def with_metadata(metadata):
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, metadata)
    return model


def test_taps_survive_the_trip_through_metadata():
    metadata = {"author": "somebody"}
    write_taps(metadata, TAPS)
    assert read_taps(with_metadata(metadata)) == TAPS
    assert metadata["author"] == "somebody"


def test_a_graph_without_taps_has_none():
    assert read_taps(with_metadata({"author": "somebody"})) == []


@pytest.mark.parametrize("value", ["not json", "[1]", '[{"layer": "a"}]', '[{"lair": "a"}]'])
def test_damaged_metadata_is_refused(value):
    with pytest.raises(InputError, match=r"metadata is damaged: odm\.taps"):
        read_taps(with_metadata({"odm.taps": value}))


def test_renaming_a_source_touches_only_its_taps():
    metadata = {}
    rename_source(metadata, "input", "image")
    assert metadata == {}
    write_taps(metadata, TAPS)
    rename_source(metadata, "input", "image")
    assert [tap["source"] for tap in json.loads(metadata["odm.taps"])] == ["image", "x"]


def test_every_layer_of_a_lowered_graph_is_tapped_with_its_offsets():
    model = model_of_all_kinds(power_of_two=True)
    proto = lowered(model)
    taps = read_taps(proto)
    assert [tap.layer for tap in taps] == list(model.layers)
    for tap in taps:
        grid = model.layers[tap.layer].grid
        shifted = grid.is_free or (grid.bits == 8 and grid.zero_point != 128)
        assert tap.code_offset == (grid.code_half if shifted else grid.zero_point)
        assert tap.zero_code == grid.zero_point
        # Free grids are padded in the network, before the quantizer; unshifted ones in the convolution.
        assert tap.padding == ((1, 1) if shifted and not grid.is_free else (0, 0))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("io", [("float32", "nchw"), ("uint8", "nhwc")])
def test_sources_and_codes_exist_after_every_pass(precision, io):
    proto = lowered(tiny_model(8), precision=precision, io=io[0], layout=io[1])
    producers = {name: node.op_type for node in proto.graph.node for name in node.output}
    for tap in read_taps(proto):
        assert producers[tap.codes] == "QuantizeLinear"
        assert tap.source in producers or tap.source == "input"
