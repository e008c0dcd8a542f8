"""How far an output pixel looks: the receptive radius of a lowered graph, computed from its operators.

Tiles that overlap by this radius reproduce the whole image exactly; less shows seams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import onnx
from onnx import numpy_helper

_POINTWISE = (
    frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Clip", "Neg", "Abs", "Sqrt", "Pow", "Exp", "Round", "Erf"})
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus"}
    | {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Concat", "Gather", "Slice", "Split"}
)


@dataclass(frozen=True)
class _Reach:
    """What a tensor's pixel depends on."""

    radius: Fraction
    """Input pixels on each side."""
    scale: Fraction
    """Pixels of this tensor per input pixel."""


def receptive_radius_px(model: onnx.ModelProto) -> int | None:
    """Input pixels on each side that one output pixel depends on.

    Returns:
        The radius, rounded up; None when an operator looks arbitrarily far (attention over windows, global pooling,
        matrix products) and tiles can only approximate the whole image.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    reach = {value.name: _Reach(Fraction(0), Fraction(1)) for value in model.graph.input}
    for node in model.graph.node:
        sources = [reach[name] for name in node.input if name in reach]
        if not sources:
            continue
        result = _after(node, sources, constants)
        if result is None:
            return None
        reach.update(dict.fromkeys(node.output, result))
    outputs = [reach.get(value.name) for value in model.graph.output]
    if not all(outputs):
        return None
    return max(math.ceil(found.radius) for found in outputs if found is not None)


def _after(node: onnx.NodeProto, sources: list[_Reach], constants: dict[str, onnx.TensorProto]) -> _Reach | None:
    """The reach of a node's output; None when it is unbounded."""
    widest = max(sources, key=lambda source: source.radius)
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return _after_convolution(node, widest, attributes, constants)
    if node.op_type == "DepthToSpace":
        return _Reach(widest.radius, widest.scale * attributes["blocksize"])
    if node.op_type == "SpaceToDepth":
        # One coarse pixel covers a block of fine ones.
        return _Reach(
            widest.radius + (attributes["blocksize"] - 1) / widest.scale, widest.scale / attributes["blocksize"]
        )
    if node.op_type == "Pad":
        # Zeros around the image, taken away again by the convolution that follows.
        return widest
    if node.op_type == "Transpose" and len(attributes.get("perm", ())) == 4:
        return widest
    return widest if node.op_type in _POINTWISE else None


def _after_convolution(
    node: onnx.NodeProto, source: _Reach, attributes: dict[str, object], constants: dict[str, onnx.TensorProto]
) -> _Reach | None:
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        weight = constants.get(node.input[1])
        if weight is None:
            return None
        kernel = numpy_helper.to_array(weight).shape[2:]
    assert isinstance(kernel, (list, tuple))
    dilations = attributes.get("dilations") or [1] * len(kernel)
    strides = attributes.get("strides") or [1] * len(kernel)
    assert isinstance(dilations, (list, tuple))
    assert isinstance(strides, (list, tuple))
    span = max((int(size) - 1) * int(dilation) for size, dilation in zip(kernel, dilations, strict=True))
    # Half of the span on each side; an even kernel reaches further on one of them. Behind a stride one coarse pixel
    # stands for several fine ones, and the last of those is that much further from what its first one sees.
    side = math.ceil(span / 2) + max(int(stride) for stride in strides) - 1
    return _Reach(source.radius + Fraction(side) / source.scale, source.scale / int(strides[0]))
