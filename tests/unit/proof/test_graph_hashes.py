"""One number of an exact graph changed, anywhere: the layer it belongs to is named."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from odm_deploy.proof.golden import hashes_by_layer
from tests.exact_models import SIZES, calibrated_exact
from tests.factories import lowered

NEIGHBOURS = {
    # What no layer's name is on belongs to the layer before it, or to the first.
    "edsr": {"reshape": "head.0", "reshape_1": "tail.1"},
    "rdn": {},
    "compact": {"val_1": "net.body.0", "val_2": "net.body.0"},
    "srresnet": {
        "val_7": "conv_input",
        "val_8": "residual.0.conv1",
        "val_9": "residual.1.conv1",
        "val_15": "upscale.0",
    },
}


@functools.cache
def graph(network) -> onnx.ModelProto:
    return lowered(calibrated_exact(network))


@functools.cache
def written(network) -> dict[str, str]:
    return hashes_by_layer(graph(network), list(calibrated_exact(network).layers))


def owner(network, initializer):
    layers = calibrated_exact(network).layers
    named = [layer for layer in layers if initializer.startswith(f"{layer}.")]
    return max(named, key=len) if named else NEIGHBOURS[network][initializer]


def nudged(array: np.ndarray, position: int, upward: bool) -> np.ndarray:
    """One element replaced by its neighbour: the next code, or the next float."""
    array = array.copy()
    flat = array.reshape(-1)
    index = position % flat.size
    if np.issubdtype(array.dtype, np.floating):
        flat[index] = np.nextafter(flat[index], flat.dtype.type(np.inf if upward else -np.inf))
    else:
        limits = np.iinfo(array.dtype)
        flat[index] += 1 if flat[index] == limits.min or (upward and flat[index] < limits.max) else -1
    return array


def changed(network, edited) -> list[str]:
    found = hashes_by_layer(edited, list(calibrated_exact(network).layers))
    return [layer for layer, digest in written(network).items() if found[layer] != digest]


def with_one_number_changed(network, initializer, position, upward):
    edited = onnx.ModelProto()
    edited.CopyFrom(graph(network))
    tensor = next(tensor for tensor in edited.graph.initializer if tensor.name == initializer)
    array = nudged(numpy_helper.to_array(tensor), position, upward)
    tensor.CopyFrom(numpy_helper.from_array(array, initializer))
    return edited


@pytest.mark.parametrize("network", SIZES)
def test_every_initializer_belongs_to_its_layer(network):
    names = [tensor.name for tensor in graph(network).graph.initializer]
    kinds = {name.rpartition(".")[2] for name in names}
    assert kinds >= {"codes", "scale_w", "zero_point_w", "scale_x", "zero_point_x", "min", "max", "center", "pads"}
    for name in names:
        edited = with_one_number_changed(network, name, 0, upward=True)
        assert changed(network, edited) == [owner(network, name)], name


@given(st.sampled_from(list(SIZES)), st.integers(0), st.integers(0), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_number_belongs_to_its_layer(network, which, position, upward):
    names = [tensor.name for tensor in graph(network).graph.initializer]
    name = names[which % len(names)]
    assert changed(network, with_one_number_changed(network, name, position, upward)) == [owner(network, name)]


@pytest.mark.parametrize("network", SIZES)
def test_every_node_belongs_to_a_layer(network):
    layers = list(calibrated_exact(network).layers)
    for index in range(len(graph(network).graph.node)):
        edited = onnx.ModelProto()
        edited.CopyFrom(graph(network))
        node = edited.graph.node[index]
        node.op_type = "Elsewhere"
        found = changed(network, edited)
        assert len(found) == 1, node.name
        assert found[0] in layers
        if any(f"{node.name}.".startswith(f"{layer}.") for layer in layers):
            assert f"{node.name}.".startswith(f"{found[0]}.")


def test_operator_sets_belong_to_no_layer():
    edited = onnx.ModelProto()
    edited.CopyFrom(graph("edsr"))
    edited.opset_import[0].version += 1
    assert changed("edsr", edited) == [""]


def test_a_graph_without_these_layers_has_other_hashes():
    layers = list(calibrated_exact("edsr").layers)
    hashes = hashes_by_layer(graph("rdn"), layers)
    assert list(hashes) == [*layers, ""]
    assert not [layer for layer in layers if hashes[layer] == written("edsr")[layer]]
    assert list(hashes_by_layer(graph("edsr"), [])) == [""]
