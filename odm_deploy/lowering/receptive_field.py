"""How far an output pixel looks: the receptive radius of a lowered graph, computed from its operators.

Tiles that overlap by this radius reproduce the whole image exactly; less shows seams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import onnx
from onnx import numpy_helper

from odm_deploy.graphs.index import attribute

_POINTWISE = (
    frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Clip", "Neg", "Abs", "Sqrt", "Pow", "Exp", "Erf"})
    | {"Round", "Floor", "Ceil"}
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus"}
    | {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Concat", "Gather", "Slice", "Split"}
    # Zeros around the image, taken away again by the convolution that follows.
    | {"Pad"}
)

_NEIGHBOURS = {b"nearest": 1, b"linear": 1, b"cubic": 2}
"""How far `Resize` looks, by its mode."""
_PLACES = (b"asymmetric", b"half_pixel")
"""Where `Resize` takes pixels from, if that does not depend on the image's size."""


@dataclass(frozen=True)
class _Reach:
    """What a tensor's pixel depends on."""

    radius: Fraction
    """Input pixels on each side."""
    scale: Fraction
    """Pixels of this tensor per input pixel."""


def receptive_radius_px(model: onnx.ModelProto) -> int | None:
    """Input pixels on each side that one output pixel depends on, rounded up, behind strides to a multiple of these.

    Tiles that share that much then begin where the coarser pixels of the whole image do.

    None when an operator looks arbitrarily far (attention over windows, global pooling, matrix products): then tiles
    can only approximate the whole image.
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
    outputs = [reach[value.name] for value in model.graph.output if value.name in reach]
    if len(outputs) < len(model.graph.output):
        return None
    step = math.lcm(*(found.scale.denominator for found in reach.values()))
    return max(math.ceil(found.radius / step) * step for found in outputs)


def _after(node: onnx.NodeProto, sources: list[_Reach], constants: dict[str, onnx.TensorProto]) -> _Reach | None:
    """The reach of a node's output; None when it is unbounded."""
    widest = max(sources, key=lambda source: source.radius)
    block = attribute(node, "blocksize")
    if node.op_type == "Conv":
        return _after_convolution(node, widest, constants)
    if node.op_type == "DepthToSpace":
        return _Reach(widest.radius, widest.scale * block)
    if node.op_type == "SpaceToDepth":
        # One coarse pixel covers a block of fine ones.
        return _Reach(widest.radius + (block - 1) / widest.scale, widest.scale / block)
    if node.op_type == "Resize":
        return _after_resize(node, widest, constants)
    if node.op_type == "Transpose" and len(attribute(node, "perm", ())) == 4:
        return widest
    return widest if node.op_type in _POINTWISE else None


def _after_resize(node: onnx.NodeProto, source: _Reach, constants: dict[str, onnx.TensorProto]) -> _Reach | None:
    """Enlargement by a whole number whose pixels stand at the same places in a tile as in the whole image."""
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    factors = [] if scales is None else numpy_helper.to_array(scales).tolist()
    if len(factors) != 4 or factors[:2] != [1.0, 1.0] or factors[2] != factors[3] or attribute(node, "axes", None):
        return None
    factor = Fraction(factors[2])
    mode = attribute(node, "mode", b"nearest")
    # Others look at the size of the whole image, or have weights of their own beside its edges.
    places = attribute(node, "coordinate_transformation_mode", b"half_pixel")
    known = places in _PLACES and not (attribute(node, "antialias", 0) or attribute(node, "exclude_outside", 0))
    if not known or mode not in _NEIGHBOURS or factor.denominator != 1 or factor < 1:
        return None
    if mode == b"nearest" and places == b"asymmetric" and attribute(node, "nearest_mode", b"") == b"floor":
        return _Reach(source.radius, source.scale * factor)
    # Of other factors, weights are rounded, differently from place to place.
    if factor.numerator & (factor.numerator - 1):
        return None
    return _Reach(source.radius + _NEIGHBOURS[mode] / source.scale, source.scale * factor)


def _after_convolution(node: onnx.NodeProto, source: _Reach, constants: dict[str, onnx.TensorProto]) -> _Reach | None:
    weight = constants.get(node.input[1])
    kernel: list[int] | None = attribute(node, "kernel_shape", None if weight is None else list(weight.dims[2:]))
    if kernel is None:
        return None
    strides: list[int] = attribute(node, "strides", [1] * len(kernel))
    dilations: list[int] = attribute(node, "dilations", [1] * len(kernel))
    if not kernel or len({len(kernel), len(strides), len(dilations)}) > 1 or min(strides) < 1:
        return None
    span = max((size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True))
    # Half of the span on each side; an even kernel reaches further on one of them. Behind a stride one coarse pixel
    # stands for several fine ones, and the last of those is that much further from what its first one sees.
    side = math.ceil(span / 2) + max(strides) - 1
    return _Reach(source.radius + Fraction(side) / source.scale, source.scale / strides[0])
