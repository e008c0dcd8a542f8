"""What every reader of an ONNX graph takes for granted, checked once where the file comes in.

Protocol buffers neither tie attributes, inputs and outputs to their operator's definition nor insist that text is text:
names that are no UTF-8 arrive as bytes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from odm_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

_OPSET_DEFAULT = 1
_LARGEST_OPSET = 1000
"""No set of operators has come near that version; OpenVINO counts up to it."""
_REQUIRED = 0
"""Of OpSchema.FormalParameterOption: Single."""


def check_graph(model: onnx.ModelProto, *, label: str) -> None:
    """Refuse a model with names that are no text, types that ONNX has not, or what an operator does not take or give.

    Operators and attributes that ONNX does not define are left alone. `label` names the model in error messages.

    Raises:
        InputError: such a name or type, an attribute of another kind, or another number of inputs or outputs.
    """
    versions = {each.domain: each.version for each in model.opset_import}
    for domain, version in versions.items():
        if not 1 <= version <= _LARGEST_OPSET:
            raise InputError(f"{label} is damaged", why=f"it is of version {version} of the operators of {domain!r}")
    _check_text(
        (model.producer_name, *(text for each in model.metadata_props for text in (each.key, each.value))), label
    )
    for part in (model.graph, *model.functions):
        _check_part(part, versions, label)


def _check_part(part: onnx.GraphProto | onnx.FunctionProto, versions: dict[str, int], label: str) -> None:
    _check_text(_names(part), label)
    # Functions name their inputs and outputs, and leave the types to the caller.
    named: list[Any] = [*part.input, *part.output, *part.value_info]
    edges = [value for value in named if not isinstance(value, str)]
    for value in edges:
        if (kind := value.type.tensor_type.elem_type) not in _known_types():
            raise InputError(f"{label} is damaged", why=f"the type of {value.name!r} is {kind}, which ONNX has not")
    for node in part.node:
        _check_text((node.name, node.op_type, node.domain, *node.input, *node.output), label)
        definition: Any = _definition(node, versions)
        if definition is not None:
            _check_wires(node, definition, label)
        for attribute in node.attribute:
            _check_text((attribute.name,), label)
            wanted = None if definition is None else definition.attributes.get(attribute.name)
            # A reference stands for a value that the caller of a function gives.
            if wanted is not None and not attribute.ref_attr_name and int(wanted.type.value) != attribute.type:
                raise InputError(
                    f"{label} is damaged",
                    why=f"the attribute {attribute.name!r} of {node.op_type} {node.name!r} is of another type",
                )
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _check_part(body, versions, label)


@functools.cache
def _known_types() -> frozenset[int]:
    """Types of numbers that can be computed with here, and 0, which leaves it open."""
    from onnx import TensorProto, helper

    found = {0}
    for kind in TensorProto.DataType.values():
        with contextlib.suppress(KeyError):
            helper.tensor_dtype_to_np_dtype(kind)
            found.add(kind)
    return frozenset(found)


def _check_wires(node: onnx.NodeProto, definition: Any, label: str) -> None:
    """Refuse what lacks an input, or has one too many; runtimes believe the number, and some take gigabytes over it."""
    what = f"{node.op_type} {node.name!r}"
    for kind, wires, least, most in (
        ("inputs", node.input, definition.min_input, definition.max_input),
        ("outputs", node.output, definition.min_output, definition.max_output),
    ):
        # Optional ones at the end may be left out, or have no name.
        if not least <= len(wires) <= most:
            raise InputError(f"{label} is damaged", why=f"{what} has {len(wires)} {kind}, and takes {least} to {most}")
    for name, formal in zip(node.input, definition.inputs, strict=False):
        if not name and int(formal.option.value) == _REQUIRED:
            raise InputError(f"{label} is damaged", why=f"{what} lacks its input {formal.name}")


def _names(part: Any) -> Iterator[Any]:
    """Names of a graph's, or a function's, own tensors."""
    yield part.name
    for edge in (*part.input, *part.output):
        # Of a function these are names alone.
        yield edge.name if hasattr(edge, "name") else edge
    for tensor in getattr(part, "initializer", ()):
        yield tensor.name


def _check_text(texts: Iterable[Any], label: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{label} is damaged", why=f"it holds a name that is no text: {text!r:.60}")


def _definition(node: onnx.NodeProto, versions: dict[str, int]) -> onnx.defs.OpSchema | None:
    """How ONNX defines a node's operator, in its newest version where the file's is unknown; None where it does not."""
    from onnx import defs

    domain = "" if node.domain == "ai.onnx" else node.domain
    version = versions.get(domain, versions.get("ai.onnx", _OPSET_DEFAULT))
    for known in (version, defs.onnx_opset_version()):
        try:
            return defs.get_schema(node.op_type, known, domain)
        except (defs.SchemaError, TypeError):
            continue
    return None
