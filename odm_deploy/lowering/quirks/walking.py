"""Walks from an operator to what it is computed from and to what reads it."""

from __future__ import annotations

import onnx_ir as ir

from odm_deploy.graphs.editor import constant_array

# fmt: off
ARITHMETIC = {"Add", "Sub", "Mul", "Div"}
POINTWISE = ARITHMETIC | {
    "Abs", "BatchNormalization", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Max", "Min", "Mish", "Neg", "PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish",
    "Tanh",
}
# fmt: on
MOVES = {"DepthToSpace", "Concat", "Slice", "Pad", "Transpose", "Reshape", "Resize", "Identity"}


def producers_of(node: ir.Node, through: set[str]) -> set[ir.Node]:
    """What makes the first input of `node`, at once or in front of operators of the kinds `through`; these, too."""
    values, seen = list(node.inputs[:1]), set[ir.Node]()
    while values:
        value = values.pop()
        producer = value.producer() if value is not None else None
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        if producer.op_type in through:
            values += producer.inputs
    return seen


def readers_of(node: ir.Node, through: set[str]) -> set[ir.Node]:
    """What reads the result of `node`, at once or behind operators of the kinds `through`; these, too."""
    behind = [use.node for use in node.outputs[0].uses()]
    seen: set[ir.Node] = set()
    while behind:
        reader = behind.pop()
        if reader not in seen and reader.op_type in through:
            behind += [use.node for output in reader.outputs for use in output.uses()]
        seen.add(reader)
    return seen


def with_constant(x: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """The computed operand of the arithmetic that made `x` and the shape of the constant one; None for other values."""
    node = x.producer()
    if node is None or node.op_type not in ARITHMETIC:
        return None
    constants = [array for value in node.inputs if (array := constant_array(value)) is not None]
    computed = [value for value in node.inputs if value is not None and value.const_value is None]
    return (computed[0], constants[0].shape) if len(constants) == len(computed) == 1 else None
