"""The float twin of a QDQ graph: the same network without its quantization, to time a quantized model against.

What quantization added is taken out, so that the twin costs exactly what the float network would:

- quantizers, and the bounds in front of them or between Q and DQ;
- the shift of asymmetric ranges: `Pad -> Sub(c) -> Q -> DQ -> Conv(pads=0)` becomes `Conv(pads=p)` again and the bias
  gives back c * sum(w). Grids that pad with another level than zero lose that detail, as their float network has none;
- weight codes, which become float weights;
- the place of a narrow convolution in front of a pixel shuffle, where it has four times its products: it goes behind;
- casts to float32 and back around quantizers of a half-precision graph.

Needs onnx and numpy only, so that a machine without torch can measure a speedup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.index import GraphIndex, attribute
from odm_deploy.lowering.scattering import gathered

_BOUNDS = {"Max", "Min", "Clip"}


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Build the float twin of a QDQ model; `model` stays as it is.

    Returns:
        A model with the same inputs and outputs and no QuantizeLinear or DequantizeLinear node.

    Raises:
        InputError: the graph has no quantizers, one whose codes or scales are part of its interface, or is not valid.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    if not any(node.op_type == "QuantizeLinear" for node in twin.graph.node):
        raise InputError("the model has no float twin", why="it quantizes nothing")
    graph = _Graph(twin.graph)
    graph.each("DequantizeLinear", _dequantize_constant)
    graph.each("QuantizeLinear", _drop_shift)
    graph.each("QuantizeLinear", _drop_bounds_before)
    graph.each("QuantizeLinear", _drop_integer_bounds)
    graph.each("QuantizeLinear", _Graph.bypass)
    graph.each("DequantizeLinear", _Graph.bypass)
    graph.each("Cast", _drop_cast_pair)
    graph.each("DepthToSpace", _move_behind)
    graph.sweep()
    # Taps and other notes speak of tensors that are gone.
    del twin.metadata_props[:]
    try:
        onnx.checker.check_model(twin)
    except onnx.checker.ValidationError as error:
        # Some runtimes take what ONNX does not, such as nodes in another order.
        raise InputError("the model has no float twin", why=" ".join(str(error).split())[:200]) from error
    return twin


class _Graph(GraphIndex):
    """A GraphProto with the look-ups that rewriting needs, kept current while it is edited."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        super().__init__(proto)
        self.proto = proto
        self.outputs = {value.name for value in proto.output}

    def each(self, op_type: str, rewrite: Callable[[_Graph, onnx.NodeProto], None]) -> None:
        """Apply `rewrite` to every node of a type."""
        for node in [node for node in self.proto.node if node.op_type == op_type]:
            rewrite(self, node)

    def add_constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an initializer under an unused name made from `name`; returns that name."""
        while name in self.stored or name in self.producers:
            name += "_"
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.proto.initializer.append(tensor)
        self.stored[name] = tensor
        return name

    def rewire(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Let input `index` of `node` be the tensor `name`."""
        node.input[index] = name
        self.readers[name].append(node)

    def sole_reader(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads `name`, when nothing else does and it is no graph output."""
        readers = list({id(node): node for node in self.readers[name] if name in node.input}.values())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def bypass(self, node: onnx.NodeProto, source: str | None = None) -> None:
        """Let whoever read `node`'s output read its first input (or `source`) instead."""
        source = source or node.input[0]
        result = node.output[0]
        for reader in list(self.readers[result]):
            for index, name in enumerate(reader.input):
                if name == result:
                    self.rewire(reader, index, source)
        if result in self.outputs:
            if node.op_type == "QuantizeLinear":
                raise InputError("the model has no float twin", why=f"its output {result!r} is made of integer codes")
            # An output keeps its name; runtimes remove the Identity.
            node.CopyFrom(helper.make_node("Identity", [source], [result], name=node.name))
            self.readers[source].append(node)

    def sweep(self) -> None:
        """Remove the nodes and constants that no output depends on any more."""
        needed, nodes, constants = set(self.outputs), self.proto.node, self.proto.initializer
        for position in reversed(range(len(nodes))):
            if needed.isdisjoint(nodes[position].output):
                del nodes[position]
            else:
                needed.update(nodes[position].input)
        for position in reversed(range(len(constants))):
            if constants[position].name not in needed:
                del constants[position]
        # Shapes and types of tensors that are gone, or had another type.
        del self.proto.value_info[:]


def _dequantize_constant(graph: _Graph, node: onnx.NodeProto) -> None:
    """DequantizeLinear of a constant becomes its value (and in half precision, so does the Cast behind it)."""
    codes, scale = graph.value(node.input[0]), graph.value(node.input[1])
    if codes is None or scale is None:
        return
    zero = graph.value(node.input[2]) if len(node.input) > 2 else None
    axis = attribute(node, "axis", 1)

    def aligned(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape([-1 if at == axis % codes.ndim else 1 for at in range(codes.ndim)])

    steps = codes.astype(np.int64)
    if scale.size > 1:
        scale = aligned(scale)
        zero = None if zero is None else aligned(zero)
    if zero is not None:
        steps = steps - zero.astype(np.int64)
    value = (steps * scale.astype(np.float32)).astype(scale.dtype).reshape(codes.shape)
    name = graph.add_constant(f"{node.output[0]}.float", value)
    for reader in list(graph.readers[node.output[0]]):
        target = _cast_target(reader)
        if target is not None:
            half = value.astype(helper.tensor_dtype_to_np_dtype(target))
            graph.bypass(reader, graph.add_constant(f"{reader.output[0]}.float", half))
    graph.bypass(node, name)


def _drop_shift(graph: _Graph, quantize: onnx.NodeProto) -> None:
    """Undo `[Pad ->] Sub(c) [-> bounds] -> Q -> DQ -> layer` whose layer adds c * sum(w) again."""
    dequantize = graph.sole_reader(quantize.output[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return
    levels = dequantize.output[0]
    cast = graph.sole_reader(levels)
    if cast is not None and _cast_target(cast) is not None:
        levels = cast.output[0]
    layer = graph.sole_reader(levels)
    first = _before_bounds(graph, quantize, quantize.input[0])
    subtract = graph.producers.get(first)
    if layer is None or subtract is None or subtract.op_type != "Sub":
        return
    center = graph.value(subtract.input[1])
    if center is None or center.size != 1 or graph.sole_reader(first) is None:
        return
    if not _give_back_bias(graph, layer, levels, float(center.reshape(()))):
        return
    source = subtract.input[0]
    pad = graph.producers.get(source)
    if layer.op_type == "Conv" and pad is not None and pad.op_type == "Pad" and graph.sole_reader(source) is not None:
        pads = graph.value(pad.input[1])
        rank = 2 if pads is None else pads.size // 2
        if pads is not None and not pads[:2].any() and not pads[rank : rank + 2].any():
            _set_pads(layer, [*pads[2:rank].tolist(), *pads[rank + 2 :].tolist()])
            source = pad.input[0]
    graph.bypass(subtract, source)


def _give_back_bias(graph: _Graph, layer: onnx.NodeProto, levels: str, center: float) -> bool:
    """Remove c * sum(w) from what `layer` adds; False when it is not there, and nothing was changed."""
    weight = _constant_weight(graph, layer, levels)
    if weight is None:
        return False
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and len(layer.input) > 2):
        bias = graph.value(layer.input[2]) if len(layer.input) > 2 else None
        if bias is None:
            return False
        back = bias.astype(np.float64) - center * weight
        graph.rewire(layer, 2, graph.add_constant(f"{layer.input[2]}.float", back.astype(bias.dtype)))
        return True
    add = graph.sole_reader(layer.output[0])
    if add is None or add.op_type != "Add":
        return False
    term = next((array for name in add.input if (array := graph.value(name)) is not None), None)
    if term is None or term.size != weight.size or not np.allclose(term.ravel(), center * weight, rtol=1e-2, atol=1e-3):
        return False
    graph.bypass(add, layer.output[0])
    return True


def _constant_weight(graph: _Graph, layer: onnx.NodeProto, levels: str) -> NDArray[Any] | None:
    """The sum of `layer`'s weights for each output channel, float64; None when they are not constant."""
    if layer.op_type not in {"Conv", "MatMul", "Gemm"}:
        return None
    name = next((name for name in layer.input[:2] if name != levels), "")
    transpose = graph.producers.get(name)
    transposed = transpose is not None and transpose.op_type == "Transpose"
    weight = graph.value(transpose.input[0] if transpose is not None and transposed else name)
    if weight is None:
        return None
    if layer.op_type == "Gemm":
        transposed ^= bool(attribute(layer, "transB", 0))
    summed = tuple(range(1, weight.ndim)) if layer.op_type == "Conv" or transposed else (0,)
    return weight.astype(np.float64).sum(summed)


def _before_bounds(graph: _Graph, quantize: onnx.NodeProto, name: str) -> str:
    """The tensor in front of the Max, Min and Clip that only state the range of `quantize`."""
    scale = graph.value(quantize.input[1])
    node = graph.producers.get(name)
    while scale is not None and node is not None and node.op_type in _BOUNDS and graph.sole_reader(name) is not None:
        limits = [graph.value(bound) for bound in node.input[1:] if bound]
        # A quantizer's own bounds are whole steps of its scale; anything else is the network's.
        if not limits or not all(limit is not None and _whole_steps(limit, scale) for limit in limits):
            break
        name = node.input[0]
        node = graph.producers.get(name)
    return name


def _whole_steps(limit: NDArray[Any], scale: NDArray[Any]) -> bool:
    steps = limit.astype(np.float64) / scale.astype(np.float64)
    return bool(np.all(np.abs(steps - np.rint(steps)) < 1e-3) and np.all(np.abs(steps) <= 255.001))


def _drop_bounds_before(graph: _Graph, quantize: onnx.NodeProto) -> None:
    graph.rewire(quantize, 0, _before_bounds(graph, quantize, quantize.input[0]))


def _drop_integer_bounds(graph: _Graph, quantize: onnx.NodeProto) -> None:
    """Clip, Max and Min between Q and DQ bound codes, not values."""
    node = graph.sole_reader(quantize.output[0])
    while node is not None and node.op_type in _BOUNDS:
        graph.bypass(node)
        node = graph.sole_reader(quantize.output[0])


def _move_behind(graph: _Graph, shuffle: onnx.NodeProto) -> None:
    """Undo `Conv' -> DepthToSpace` that was made of `DepthToSpace -> Conv`."""
    conv = graph.producers.get(shuffle.input[0])
    if conv is None or conv.op_type != "Conv" or graph.sole_reader(conv.output[0]) is None:
        return
    block: int = attribute(shuffle, "blocksize")
    moved = graph.value(conv.input[1])
    if moved is None or moved.ndim != 4 or attribute(shuffle, "mode", b"DCR") != b"CRD":
        return
    plain = all(set(attribute(conv, name, (1,))) == {1} for name in ("strides", "dilations"))
    pads = [size // 2 for size in moved.shape[2:]] * 2
    weight = gathered(moved, block) if plain and attribute(conv, "group", 1) == 1 else None
    bias = graph.value(conv.input[2]) if len(conv.input) > 2 else None
    if weight is None or list(attribute(conv, "pads", [0] * 4)) != pads or (bias is None and len(conv.input) > 2):
        return
    operands = [graph.add_constant(f"{conv.name}.weight_behind", weight)]
    if bias is not None:
        operands.append(graph.add_constant(f"{conv.name}.bias_behind", bias[:: block**2]))
    pads = [size // 2 for size in weight.shape[2:]] * 2
    source, between, result = conv.input[0], conv.output[0], shuffle.output[0]
    behind = helper.make_node("Conv", [between, *operands], [result], name=conv.name, pads=pads)
    before = helper.make_node("DepthToSpace", [source], [between], name=shuffle.name, blocksize=block, mode="CRD")
    conv.CopyFrom(before)
    shuffle.CopyFrom(behind)


def _drop_cast_pair(graph: _Graph, down: onnx.NodeProto) -> None:
    """`Cast(fp32) -> Cast(fp16)` of a half-precision tensor, left where a quantizer stood between them."""
    up = graph.producers.get(down.input[0])
    if up is None or _cast_target(up) != onnx.TensorProto.FLOAT or _cast_target(down) != onnx.TensorProto.FLOAT16:
        return
    before = graph.producers.get(up.input[0])
    # In our half-precision graphs a Cast to float32 whose source is computed (not an image) comes from float16.
    if before is not None and before.op_type != "Cast":
        graph.bypass(down, up.input[0])


def _cast_target(node: onnx.NodeProto) -> int | None:
    return attribute(node, "to") if node.op_type == "Cast" else None


def _set_pads(conv: onnx.NodeProto, pads: list[int]) -> None:
    for old in [each for each in conv.attribute if each.name in ("pads", "auto_pad")]:
        conv.attribute.remove(old)
    conv.attribute.append(helper.make_attribute("pads", pads))
