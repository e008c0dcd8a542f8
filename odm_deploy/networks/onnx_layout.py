"""Graphs of images [N, H, W, 3], as TensorFlow's are, with the axes in torch's order."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorShapeProto, helper

_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_COLOURS = 3


def put_channels_first(model: ModelProto) -> None:
    """Make images [N, 3, H, W] of a graph's images [N, H, W, 3], in place; other graphs stay as they are."""
    graph = model.graph
    filled = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in filled]
    if len(inputs) != 1 or not graph.output:
        return
    shape = inputs[0].type.tensor_type.shape
    dims = list(shape.dim)
    if not _is_last(shape):
        return
    del shape.dim[:]
    shape.dim.extend(dims[axis] for axis in _TO_FIRST)
    made = graph.output[0].type.tensor_type
    stays = len(made.shape.dim) == 4 and made.shape.dim[1].dim_value == _COLOURS and not _is_last(made.shape)
    made.ClearField("shape")
    image, result = inputs[0].name, graph.output[0].name
    names = {name: f"{name} channels last" for name in (image, result)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    first = helper.make_node("Transpose", [image], [names[image]], perm=_TO_LAST)
    last = helper.make_node("Transpose", [names[result]], [result], perm=_TO_FIRST)
    for node in graph.node:
        # Graphs of convolutions turn the image themselves: once there and back is not at all.
        if _turns(node, _TO_FIRST) and node.input[0] == names[image]:
            _pass_on(node, image)
        if _turns(node, _TO_LAST) and node.output[0] == names[result]:
            _pass_on(last, node.input[0])
    graph.node.insert(0, first)
    graph.node.append(helper.make_node("Identity", [names[result]], [result]) if stays else last)


def _is_last(shape: TensorShapeProto) -> bool:
    """Whether the last axis of four has the colours, and the second has not."""
    sizes = [dim.dim_value for dim in shape.dim]
    return len(sizes) == 4 and sizes[3] == _COLOURS and sizes[1] != _COLOURS


def _turns(node: NodeProto, order: list[int]) -> bool:
    return node.op_type == "Transpose" and [list(each.ints) for each in node.attribute] == [order]


def _pass_on(node: NodeProto, name: str) -> None:
    """Let a node give what it is given: the tensor `name`."""
    node.op_type, node.input[0] = "Identity", name
    del node.attribute[:]
