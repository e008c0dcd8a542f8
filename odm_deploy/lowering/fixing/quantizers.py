"""Activation quantizers as they stand in a graph: a Q node, integer bounds, and the DQ nodes that read its codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edit import attribute
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE

CODE_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}
"""The least and the largest code of a type."""


@dataclass(frozen=True)
class Parameters:
    """Scale and zero point of one Q or DQ node."""

    scale: NDArray[Any]
    zero_point: NDArray[np.int64]
    kind: int
    """ONNX data type of the codes."""
    axis: int

    @property
    def is_uniform(self) -> bool:
        """Whether one scale and one zero point hold for the whole tensor."""
        return bool(np.all(self.scale == self.scale.flat[0]) and np.all(self.zero_point == self.zero_point.flat[0]))

    @property
    def step(self) -> np.float32:
        """The scale of a uniform quantizer."""
        return np.float32(self.scale.flat[0])

    @property
    def zero(self) -> int:
        """The zero point of a uniform quantizer."""
        return int(self.zero_point.flat[0])


@dataclass(frozen=True)
class Pair:
    """A Q node with one DQ node: x becomes scale * (code - zero point), rounded and saturated in between."""

    quantize: ir.Node
    dequantize: ir.Node
    given: Parameters
    taken: Parameters
    low: int
    high: int
    """The codes that can occur, with a Clip between the two."""

    @property
    def steps(self) -> tuple[int, int]:
        """The codes minus the zero point."""
        return self.low - self.given.zero, self.high - self.given.zero

    @property
    def is_legal(self) -> bool:
        """Whether TensorRT takes it as it stands."""
        scalars = all(self.scalar_inputs(node) for node in (self.quantize, self.dequantize))
        kinds = self.given.kind == self.taken.kind == TensorProto.INT8
        return scalars and kinds and self.given.zero == self.taken.zero == 0 and (self.low, self.high) == (-128, 127)

    @property
    def fits(self) -> bool:
        """Whether its steps are int8 codes."""
        return self.steps[0] >= -128 and self.steps[1] <= 127

    @staticmethod
    def scalar_inputs(node: ir.Node) -> bool:
        """Whether the scale is stored with shape []."""
        scale = node.inputs[1]
        array = None if scale is None or scale.const_value is None else scale.const_value
        return array is not None and not array.shape


def parameters(constants: Constants, node: ir.Node) -> Parameters | str:
    """What a Q or DQ node quantizes with; a string says why nobody can tell."""
    names = [value.name if value is not None else None for value in node.inputs]
    if names[1] is None or not constants.is_constant(names[1]):
        return "its scale is computed at run time"
    scale = constants.value(names[1])
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        return "its scale is not a positive number"
    zero, kind = np.zeros(1, np.int64), int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
    if len(names) > 2 and names[2]:
        if not constants.is_constant(names[2]):
            return "its zero point is computed at run time"
        zero, kind = constants.codes(names[2]), constants.type_of(names[2])
    return Parameters(np.atleast_1d(scale), np.atleast_1d(zero), kind, int(attribute(node, "axis", 1)))


def pairs_of(constants: Constants, quantize: ir.Node) -> list[Pair] | str:
    """The DQ nodes behind a Q node; a string says why they cannot be told."""
    given = parameters(constants, quantize)
    if isinstance(given, str):
        return given
    if given.kind not in CODE_RANGES:
        return "its codes are no integers of up to 16 bits"
    found: list[Pair] = []
    for node, low, high in _readers(constants, quantize.outputs[0], *CODE_RANGES[given.kind]):
        if node.op_type != DEQUANTIZE:
            return f"{node.name} ({node.op_type}) computes with its codes"
        if node.graph is not quantize.graph:
            return "a branch of an If or the body of a loop reads its codes"
        taken = parameters(constants, node)
        if isinstance(taken, str):
            return taken
        if len(node.inputs) < 3 or node.inputs[2] is None:
            taken = Parameters(taken.scale, taken.zero_point, given.kind, taken.axis)
        found.append(Pair(quantize, node, given, taken, low, high))
    return found


def _readers(constants: Constants, codes: ir.Value, low: int, high: int) -> list[tuple[ir.Node, int, int]]:
    """The nodes that read codes, directly or through Clip and Identity, with the codes that reach them."""
    found: list[tuple[ir.Node, int, int]] = []
    for use in codes.uses():
        node = use.node
        if node.op_type == "Clip":
            least, most, *_ = (_code(constants, value) for value in (*node.inputs[1:], None, None))
            tight = low if least is None else max(low, least), high if most is None else min(high, most)
            found += _readers(constants, node.outputs[0], *tight)
        elif node.op_type == "Identity":
            found += _readers(constants, node.outputs[0], low, high)
        else:
            found.append((node, low, high))
    return found


def _code(constants: Constants, value: ir.Value | None) -> int | None:
    """A stored bound of codes."""
    name = value.name if value is not None else None
    return int(constants.codes(name).flat[0]) if name and constants.is_constant(name) else None


def is_activation_quantizer(constants: Constants, node: ir.Node) -> bool:
    """Whether a node quantizes something that is computed at run time."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type == QUANTIZE and source is not None and not constants.is_constant(source.name or "")
