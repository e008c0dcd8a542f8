"""Convolutions that an engine pads by kernels of their own: what that costs is in docs/measurements/gpu.md."""

from __future__ import annotations

from onnx import ModelProto


def padded_before(model: ModelProto) -> int:
    """How many inputs of convolutions are padded in float, in front of the shift to signed codes."""
    shifted = {node.input[0] for node in model.graph.node if node.op_type == "Sub"}
    return sum(node.op_type == "Pad" and node.output[0] in shifted for node in model.graph.node)
