"""The tensors stored in an ONNX file, checked once where the file comes in.

Nothing in the format ties a tensor's data to its shape, and every reader fails in a way of its own where they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from odm_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

LARGEST_DATA_BYTES = 2**33
"""All tensors of a model together: hundreds of times the largest super-resolution network."""

_BITS_BELOW_A_BYTE = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def tensors_of(message: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, in the main graph, in bodies of If and Loop, in functions."""
    import onnx

    if isinstance(message, onnx.ModelProto):
        for part in (message.graph, *message.functions):
            yield from tensors_of(part)
        return
    if isinstance(message, onnx.GraphProto):
        yield from message.initializer
    for attribute in (attribute for node in message.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for body in (attribute.g, *attribute.graphs):
            yield from tensors_of(body)


def check_tensors(model: onnx.ModelProto, *, label: str) -> None:
    """Refuse a model with a tensor that does not hold what its type and shape say. `label` names it in error messages.

    Data that lies in another file is not looked at, but counted.

    Raises:
        InputError: negative sizes, an unknown type, too little or too much data, or more of it than any network has.
    """
    total = 0
    for tensor in tensors_of(model):
        if not tensor.data_type and not tensor.dims and not tensor.name:
            continue  # an attribute that is no tensor
        total += _checked_bytes(tensor, label)
    if total > LARGEST_DATA_BYTES:
        raise InputError(f"cannot load {label}", why=f"its tensors take {total} bytes; at most {LARGEST_DATA_BYTES}")


def _checked_bytes(tensor: onnx.TensorProto, label: str) -> int:
    import onnx
    from onnx import helper, numpy_helper

    def refuse(why: str) -> InputError:
        return InputError(f"{label} is damaged", why=f"the tensor {tensor.name!r} {why}")

    if any(size < 0 for size in tensor.dims):
        raise refuse(f"has the shape {list(tensor.dims)}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    try:
        itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise refuse(f"is of the unknown type {tensor.data_type}") from None
    bits = _BITS_BELOW_A_BYTE.get(onnx.TensorProto.DataType.Name(tensor.data_type), 8 * itemsize)  # pyright: ignore[reportArgumentType]
    wanted = -(-prod(tensor.dims) * bits // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return wanted
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != wanted:
            raise refuse(f"holds {len(tensor.raw_data)} bytes; its shape {list(tensor.dims)} takes {wanted}")
        return wanted
    try:
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise refuse(f"does not hold its shape {list(tensor.dims)}: {error}") from None
    return wanted
