"""Damaged ONNX graphs that still parse: other operators, sizes, types, wires, and what takes memory and time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from torture.mutating import damaged_bytes, damaged_document, hostile_value

_SIZES = (0, -1, 1, 2, 7, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
_OPERATORS = ("Conv", "MatMul", "Pad", "Resize", "Expand", "Tile", "If", "Loop", "Einsum", "QLinearConv", "Nothing", "")
_FILES = ("/etc/hostname", "../../../../etc/passwd", "manifest.json", "", "/dev/zero", "missing", "\x00")


def damaged_onnx(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of the graph, or damaged bytes."""
    if rng.randrange(3) == 0:
        return damaged_bytes(data, rng)
    model = onnx.load_model_from_string(data)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_EDITS)(model, rng)
    try:
        return model.SerializeToString()
    except ValueError:  # what was put in is more than two gigabytes, or no text
        return damaged_bytes(data, rng)


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    node.op_type = rng.choice([rng.choice(model.graph.node).op_type, rng.choice(_OPERATORS)])


def _wires(model: onnx.ModelProto, rng: random.Random) -> None:
    node, other = rng.choice(model.graph.node), rng.choice(model.graph.node)
    wires = node.input if rng.randrange(3) else node.output
    match rng.randrange(4):
        case 0 if wires:
            del wires[rng.randrange(len(wires))]
        case 1:
            wires.append(rng.choice(["", *other.input, *other.output]))
        case _ if wires:
            wires[rng.randrange(len(wires))] = rng.choice(["", "nowhere", *other.input, *other.output])
        case _:
            pass


def _name(model: onnx.ModelProto, rng: random.Random) -> None:
    # Names are printed: as a style that never began, a command to the terminal, the name of another node.
    nodes = model.graph.node
    rng.choice(nodes).name = rng.choice(["[/x]", "\x1b]0;x\x07", "a" * 5000, rng.choice(nodes).name])


def _nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes, place = model.graph.node, rng.randrange(len(model.graph.node))
    match rng.randrange(3):
        case 0:
            del nodes[place]
        case 1:
            nodes.insert(rng.randrange(len(nodes)), nodes[place])
        case _:
            nodes.insert(0, nodes.pop(place))


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    having = [node for node in model.graph.node if node.attribute]
    if not having:
        return
    attributes = rng.choice(having).attribute
    attribute = rng.choice(attributes)
    match rng.randrange(5):
        case 0:
            attributes.remove(attribute)
        case 1:
            attribute.ints[:] = [rng.choice(_SIZES) for _ in range(rng.randrange(6))]
        case 2:
            attribute.i = rng.choice(_SIZES)
        case 3:
            attribute.s = rng.choice([b"", b"edge", b"\xff", b"x" * 1000])
        case _:
            attribute.type = rng.randrange(15)  # pyright: ignore[reportAttributeAccessIssue]


def _tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(6):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_SIZES)
        case 1:
            tensor.data_type = rng.randrange(30)
        case 2:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 3:
            array = numpy_helper.to_array(tensor)
            worst = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
            tensor.raw_data = np.full_like(array, worst).tobytes()
        case 4:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", rng.choice(_FILES)), ("offset", str(rng.choice(_SIZES)))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        case _:
            tensor.dims.append(rng.choice(_SIZES))


def _edges(model: onnx.ModelProto, rng: random.Random) -> None:
    edge = rng.choice([*model.graph.input, *model.graph.output])
    match rng.randrange(3):
        case 0:
            edge.type.tensor_type.elem_type = rng.randrange(30)
        case 1 if edge.type.tensor_type.shape.dim:
            rng.choice(edge.type.tensor_type.shape.dim).dim_value = rng.choice(_SIZES)
        case _:
            edge.type.tensor_type.shape.dim.add().dim_value = rng.choice(_SIZES)


def _about(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.metadata_props and rng.randrange(2):
        entry = rng.choice(model.metadata_props)
        try:
            entry.value = json.dumps(damaged_document(json.loads(entry.value), rng))
        except ValueError:
            entry.value = str(hostile_value(rng))[:5000]
    elif model.opset_import:
        rng.choice(model.opset_import).version = rng.choice([0, 1, 7, 13, 99, -1, 2**31])


def _bomb(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put in front of the output what asks for terabytes, or never ends."""
    output = model.graph.output[0].name
    last = next((node for node in model.graph.node if output in node.output), None)
    if last is None:
        return
    last.output[list(last.output).index(output)] = "before.bomb"
    size = numpy_helper.from_array(np.array([2 ** rng.choice([34, 40])], np.int64), "bomb.size")
    model.graph.initializer.append(size)
    if rng.randrange(2):
        large = helper.make_node("ConstantOfShape", ["bomb.size"], ["bomb.large"])
        total = helper.make_node("ReduceSum", ["bomb.large"], ["bomb.sum"], keepdims=0)
        model.graph.node.extend([large, total, helper.make_node("Add", ["before.bomb", "bomb.sum"], [output])])
        return
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62, np.int64), "bomb.trips"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "bomb.go"))
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("x", 1, None))
    ]
    ends = [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("x2", 1, None)]
    steps = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Cos", ["x"], ["x2"])]
    body = helper.make_graph(steps, "body", values, ends)
    model.graph.node.append(helper.make_node("Loop", ["bomb.trips", "bomb.go", "before.bomb"], [output], body=body))


_EDITS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    *(_operator, _wires, _nodes, _attribute, _tensor, _edges, _about) * 3,
    _name,
    _bomb,
)
"""What may happen to a graph; bombs more rarely, because each costs as long as it is let run."""
