"""Whose numbers are in this graph: hashes layer by layer, so that one that changed is found, and its layer named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx
from onnx import numpy_helper


def hashes_by_layer(lowered: onnx.ModelProto, layers: list[str]) -> dict[str, str]:
    """A hash of each layer's nodes and initializers, and under "" of the graph's inputs, outputs and operator sets.

    Args:
        lowered: a graph whose convolutions, quantizers and their initializers are named after layers.
        layers: dotted names, in network order.

    Returns:
        SHA-256 in hexadecimal, by layer; every node and every initializer that is read belongs to one.
    """
    digests = {layer: hashlib.sha256() for layer in [*layers, ""]}
    for edge in (*lowered.graph.input, *lowered.graph.output, *lowered.opset_import):
        digests[""].update(edge.SerializeToString(deterministic=True))
    owners: dict[str, str] = {}
    for node, layer in _nodes_by_layer(lowered, layers):
        digests[layer].update(node.SerializeToString(deterministic=True))
        for name in node.input:
            owners.setdefault(name, _named(name, layers) or layer)
    for tensor in sorted(lowered.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(tensor)
        content = f"{tensor.name} {array.dtype} {array.shape}".encode() + array.tobytes()
        digests[owners.get(tensor.name, "")].update(content)
    return {layer: digest.hexdigest() for layer, digest in digests.items()}


def _nodes_by_layer(lowered: onnx.ModelProto, layers: list[str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every node with its layer: the one it is named after, else the last one before it, else the first of all."""
    position = {layer: index for index, layer in enumerate(["", *layers])}
    makers: dict[str, str] = {}
    for node in lowered.graph.node:
        before = [makers[name] for name in node.input if name in makers]
        layer = _named(node.name, layers) or max(before, key=position.__getitem__, default=layers[0] if layers else "")
        makers.update(dict.fromkeys(node.output, layer))
        yield node, layer


def _named(name: str, layers: list[str]) -> str:
    """The layer that a node or an initializer is named after; "" for none."""
    # The longest match: `body.1` must not take what belongs to `body.1.body.0`.
    return max((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), key=len, default="")
