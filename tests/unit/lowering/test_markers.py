"""The marked graph: one node a quantizer, nothing of the exporter's own notes, names people can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.graphs.editor import constant_array
from odm_deploy.lowering.markers import DEQUANTIZE_WEIGHT, DOMAIN, FAKE_QUANTIZE, export_marked, grid_of, layer_of
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.config import NetworkConfig
from odm_deploy.quantization.model import QuantizedModel
from tests.factories import quantized, tiny_network


@pytest.fixture(scope="module")
def model():
    grids = ["asymmetric", "free", "post_relu"]
    return quantized(
        tiny_network(),
        lambda index, name: (2 + index % 7, grids[index % 3], "per_channel") if "body" in name else None,
    )


@pytest.fixture(scope="module")
def marked(model):
    return export_marked(model)


def markers(graph, op):
    return {layer_of(node): node for node in graph.graph if node.domain == DOMAIN and node.op_type == op}


def test_one_marker_a_layer_carries_its_exact_grid(model, marked):
    found = markers(marked, FAKE_QUANTIZE)
    assert {name: grid_of(node) for name, node in found.items()} == {
        name: layer.grid for name, layer in model.layers.items()
    }
    assert any(grid_of(node).is_free for node in found.values())


def test_weight_markers_hold_the_codes_and_scales(model, marked):
    found = markers(marked, DEQUANTIZE_WEIGHT)
    assert list(found) == list(model.layers)
    for name, node in found.items():
        codes, scale = (constant_array(value) for value in node.inputs)
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes, model.layers[name].codes.numpy())
        np.testing.assert_array_equal(scale, model.layers[name].scale.numpy())


def test_only_quantizers_and_weights_are_markers(model, marked):
    custom = [node for node in marked.graph if node.domain]
    assert len(custom) == 2 * len(model.layers)


def test_convolutions_are_named_by_their_layers(model, marked):
    names = [node.name for node in marked.graph if node.op_type == "Conv"]
    assert names == ["head.0", *model.layers, "tail.0.0", "tail.1"]


def test_image_axes_have_names_and_nothing_tells_where_it_was_exported(marked):
    assert [str(size) for size in marked.graph.inputs[0].shape] == ["n", "3", "h", "w"]
    assert [str(size) for size in marked.graph.outputs[0].shape] == ["n", "3", "2*h", "2*w"]
    assert (marked.graph.inputs[0].name, marked.graph.outputs[0].name) == ("input", "output")
    values = [*marked.graph.inputs, *marked.graph.initializers.values()]
    values += [value for node in marked.graph for value in node.outputs]
    notes = [marked.metadata_props, marked.graph.metadata_props, *(node.metadata_props for node in marked.graph)]
    assert not any([*notes, *(value.metadata_props for value in values)])


def test_network_the_exporter_cannot_follow_is_one_clear_line():
    class Undecided(SuperResolutionNetwork):
        """Asks for a value while it is traced, which no static graph can answer."""

        name = "undecided"

        def __init__(self) -> None:
            super().__init__(NetworkConfig(scale=1))
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if float(x.sum()) > 0 else torch.zeros_like(x)

    with pytest.raises(InputError, match="cannot export undecided: ") as caught:
        export_marked(QuantizedModel(Undecided()))
    assert "\n" not in str(caught.value)
