"""The same graph in the form that the other passes read: one flat graph, every node with a name of its own."""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import ModelProto

from odm_deploy.errors import InputError
from odm_deploy.lowering.fixing.changes import Changes
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE

_CONTRIB = "com.microsoft"
_FIRST_OPSET_WITH_AXES = 13


def normalize(model: ModelProto, changes: Changes) -> ModelProto:
    """A copy with local functions inlined, Q and DQ of the standard's own domain, and unique names.

    Raises:
        InputError: the graph is older than per-channel quantization and cannot be converted.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        changes.did("local functions inlined", len(copy.functions))
        copy = onnx.inliner.inline_local_functions(copy)
    stored = {tensor.name for tensor in copy.graph.initializer}
    filled = [value for value in copy.graph.input if value.name in stored]
    for value in filled:
        copy.graph.input.remove(value)
    if filled:
        # Before version 4 of the format every constant had to be an input, too.
        copy.ir_version = max(copy.ir_version, 4)
    changes.did("inputs dropped that stored constants fill", len(filled))
    moved = [node for node in copy.graph.node if node.domain == _CONTRIB and node.op_type in (QUANTIZE, DEQUANTIZE)]
    for node in moved:
        node.domain = ""
    changes.did(f"Q and DQ nodes of {_CONTRIB} made standard ones", len(moved))
    opset = next((entry for entry in copy.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is not None and opset.version < _FIRST_OPSET_WITH_AXES:
        try:
            copy = onnx.version_converter.convert_version(copy, _FIRST_OPSET_WITH_AXES)
        except Exception as error:  # it raises whatever its adapters do
            raise InputError(
                f"cannot convert opset {opset.version} to {_FIRST_OPSET_WITH_AXES}",
                why=" ".join(str(error).split())[:200],
                fix="export the network again with a newer opset",
            ) from error
        changes.did(f"opset {opset.version} converted to {_FIRST_OPSET_WITH_AXES}", 1)
    used = {node.domain for node in copy.graph.node}
    for entry in [entry for entry in copy.opset_import if entry.domain not in ("", "ai.onnx", *used)]:
        copy.opset_import.remove(entry)
    _name_nodes(copy, changes)
    return copy


def _name_nodes(model: ModelProto, changes: Changes) -> None:
    """Names for nodes without one, and for all but the first that share one."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    shared = 0
    for node in model.graph.node:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        shared += bool(node.name)
        base = node.name or f"node_of_{next(filter(None, node.output), node.op_type)}"
        name, count = base, 1
        while name in taken or name in seen:
            name, count = f"{base}_{count}", count + 1
        node.name = name
        seen.add(name)
    changes.did("nodes renamed that shared a name", shared)
