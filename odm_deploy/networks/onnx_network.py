"""A network that an ONNX graph describes, run in torch: its convolutions and matrix products are ordinary layers.

The graph travels as text: the ONNX model without the data of its weights, which are parameters here. So a `model.pt`
holds all it takes to build the network again, and nothing that runs as code.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections import Counter
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from odm_deploy.errors import InputError, UsageError
from odm_deploy.graphs.growth import LARGEST_TENSOR
from odm_deploy.networks.onnx_layers import LAYERS, Layer, make_layer
from odm_deploy.networks.onnx_operators import TENSOR_OPERATORS
from odm_deploy.networks.onnx_picking import FROM_THE_END
from odm_deploy.networks.onnx_sizes import SIZE_OPERATORS
from odm_deploy.networks.onnx_values import Sizes, Value, integers, sizes

ONNX_BUILDER = "odm_deploy.networks.onnx_network:OnnxNetwork"

_LARGEST_GRAPH_BYTES = 2**26
_LARGEST_SIZES = 64
"""Longer arrays of integers are indices into tensors, not shapes."""

_MAKERS = ("Shape", "Size", "Constant", "ConstantOfShape", "Range")


def pack_graph(model: onnx.ModelProto) -> str:
    """A graph as text. Its weights have lost their data."""
    return base64.b64encode(zlib.compress(model.SerializeToString(), 9)).decode()


def unpack_graph(text: str) -> onnx.ModelProto:
    """The graph that `pack_graph` packed.

    Raises:
        InputError: it is none.
    """
    try:
        packed = base64.b64decode(text, validate=True)
        data = zlib.decompressobj().decompress(packed, _LARGEST_GRAPH_BYTES)
        return onnx.load_model_from_string(data)
    except (ValueError, zlib.error, DecodeError) as error:
        raise InputError("the network's ONNX graph is damaged", why=str(error)) from error


class OnnxNetwork(nn.Module):
    """What an ONNX graph computes; float32 [N, C, H, W] -> the graph's first output."""

    def __init__(self, graph: str) -> None:
        super().__init__()
        unpacked = unpack_graph(graph)
        model, opset = unpacked.graph, opset_of(unpacked)
        if not model.input or not model.output:
            raise InputError("the network's ONNX graph is damaged", why="it has no input or no output")
        refuse_unknown_operators(model.node)
        self.layers = nn.ModuleDict()
        self.weights = nn.ParameterDict()
        self.sources: dict[str, tuple[str, bool]] = {}
        """By parameter: the tensor of the graph it holds, and whether transposed."""
        self._input = next(value.name for value in model.input)
        self._output = model.output[0].name
        self._stored: dict[str, Sizes] = {}
        self._indices: dict[str, str] = {}
        self._parameters_of: dict[str, str] = {}
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.initializer}
        stripped = {tensor.name for tensor in model.initializer if is_stripped(tensor)}
        self._steps = self._plan(list(model.node), shapes, stripped, opset)
        read = {name for step in self._steps for name in step.inputs}
        for tensor in model.initializer:
            if tensor.name in read:
                self._keep(tensor)
        last = {name: index for index, step in enumerate(self._steps) for name in step.inputs}
        self._done = [[name for name, end in last.items() if end == index] for index in range(len(self._steps))]

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph."""
        values: dict[str, Value] = {self._input: x, **self._stored}
        values |= {name: self.get_buffer(buffer) for name, buffer in self._indices.items()}
        values |= {name: self.weights[key] for name, key in self._parameters_of.items()}
        for step, done in zip(self._steps, self._done, strict=True):
            inputs = [values[name] if name else None for name in step.inputs]
            results = self._run(step, inputs)
            values.update(zip(step.outputs, results, strict=False))
            for name in done:
                if name != self._output:
                    values.pop(name, None)
        result = values[self._output]
        if not isinstance(result, Tensor):
            raise InputError("the ONNX graph cannot be converted", why="its output is no tensor")
        return result

    def load_weights(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Fill the parameters with the tensors of the graph, by its names for them."""
        with torch.no_grad():
            for key, (name, transposed) in self.sources.items():
                array = arrays[name].T if transposed else arrays[name]
                self.get_parameter(key).copy_(torch.from_numpy(np.array(array, np.float32)))

    def _run(self, step: Layer, inputs: list[Value]) -> list[Any]:
        if step.module:
            x = inputs[0]
            assert isinstance(x, Tensor)
            return [self.layers[step.module](F.pad(x, step.padding) if any(step.padding) else x)]
        if step.op in _MAKERS:
            return [_make(step, inputs)]
        given = [value for value in inputs if value is not None]
        if step.op in SIZE_OPERATORS and all(isinstance(value, np.ndarray) for value in given):
            return [SIZE_OPERATORS[step.op](given, step.attributes)]  # pyright: ignore[reportArgumentType]
        if isinstance(inputs[0], np.ndarray) and not any(isinstance(value, Tensor) for value in given):
            inputs = [torch.tensor(inputs[0].tolist()), *inputs[1:]]
        result = TENSOR_OPERATORS[step.op](inputs, step.attributes)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def _plan(
        self, nodes: list[NodeProto], shapes: dict[str, tuple[int, ...]], stripped: set[str], opset: int
    ) -> list[Layer]:
        steps: list[Layer] = []
        made: dict[tuple[Any, ...], str] = {}
        for node in nodes:
            attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute} | {"opset": opset}
            step = Layer(node.op_type, list(node.input), list(node.output), attributes)
            if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in stripped:
                built = make_layer(step, shapes, stripped)
                if built is not None:
                    module, step.padding, step.inputs, names = built
                    key = (*names, repr(module))
                    if key not in made:
                        made[key] = self._unique(names[0] or node.name)
                        self.layers[made[key]] = module
                        transposed = isinstance(module, nn.Linear) and not attributes.get("transB", 0)
                        self.sources[f"layers.{made[key]}.weight"] = (names[0], transposed)
                        if names[1]:
                            self.sources[f"layers.{made[key]}.bias"] = (names[1], False)
                    step.module = made[key]
            steps.append(step)
        return steps

    def _keep(self, tensor: TensorProto) -> None:
        """A constant that an operator reads: a parameter, indices, or sizes."""
        if is_stripped(tensor):
            key = self._unique(tensor.name)
            self.weights[key] = nn.Parameter(torch.zeros(tuple(tensor.dims)))
            self._parameters_of[tensor.name] = key
            self.sources[f"weights.{key}"] = (tensor.name, False)
            return
        array = numpy_helper.to_array(tensor)
        if array.size > _LARGEST_SIZES:
            buffer = f"indices_{len(self._indices)}"
            self.register_buffer(buffer, torch.from_numpy(array.copy()), persistent=False)
            self._indices[tensor.name] = buffer
            for step in self._steps:
                if step.op == "Gather" and step.inputs[1] == tensor.name:
                    step.attributes[FROM_THE_END] = bool((array < 0).any())
        else:
            self._stored[tensor.name] = sizes(array.tolist())

    def _unique(self, name: str) -> str:
        """A name for a module: the tensor's own without its last part, as far as torch allows."""
        base = re.sub(r"\W+", "_", re.sub(r"[._](weight|w)$", "", name)).strip("_") or "layer"
        taken, candidate, count = {*self.layers, *self.weights}, base, 1
        while candidate in taken:
            candidate, count = f"{base}_{count}", count + 1
        return candidate


def is_stripped(tensor: TensorProto) -> bool:
    """Whether a tensor of a packed graph is a parameter, whose data lies elsewhere."""
    return tensor.data_type == TensorProto.FLOAT and tensor.doc_string == STRIPPED


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph is written in; the one behind all others where it says none."""
    stated = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return max(stated, default=onnx.defs.onnx_opset_version())


STRIPPED = "weights"


def refuse_unknown_operators(nodes: Any) -> None:
    """Say which operators of a graph nobody here can convert.

    Raises:
        UsageError: there are some.
    """
    known = {*TENSOR_OPERATORS, *SIZE_OPERATORS, *LAYERS, *_MAKERS}
    odd = Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for node in nodes
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    )
    if odd:
        names = ", ".join(f"{name} ({count} x)" for name, count in odd.most_common(5))
        raise UsageError(
            "this ONNX graph cannot be converted",
            why=f"nothing here computes its {names}",
            fix="ONNX Runtime's optimizer writes such: take the file that it was given, or stop at ORT_ENABLE_BASIC"
            if any(name.startswith("com.microsoft.") for name in odd)
            else "use the network's weights (.pth, .safetensors) instead",
        )


def _make(step: Layer, inputs: list[Value]) -> Value:
    """Sizes out of a tensor, or constants out of sizes."""
    if step.op == "Shape":
        shape = list(inputs[0].shape) if inputs[0] is not None else []
        return sizes(shape[step.attributes.get("start", 0) : step.attributes.get("end")])
    if step.op == "Size":
        return sizes(inputs[0].numel() if isinstance(inputs[0], Tensor) else np.size(inputs[0] or ()))
    if step.op == "Constant":
        value = next(iter(step.attributes.values()))
        return sizes(numpy_helper.to_array(value).tolist() if isinstance(value, TensorProto) else value)
    if step.op == "Range":
        numbers = range(*(integers(value)[0] for value in inputs))
        _refuse_large(step.op, [len(numbers)])
        return sizes(list(numbers))
    fill = numpy_helper.to_array(step.attributes["value"]) if "value" in step.attributes else np.zeros(1, np.float32)
    shape = integers(inputs[0])
    _refuse_large(step.op, shape)
    if fill.dtype.kind == "f":
        return torch.full(shape, float(fill.reshape(-1)[0]))
    return sizes(np.full(shape, fill.reshape(-1)[0].item(), object).tolist())


def _refuse_large(op: str, shape: list[Any]) -> None:
    """Refuse constants that no network has, before there is memory for them; sizes of a trace are let through."""
    if all(isinstance(size, int) for size in shape) and prod(shape) > LARGEST_TENSOR:
        raise InputError(
            "the network's ONNX graph asks for more memory than any network of images",
            why=f"its {op} makes {'x'.join(map(str, shape))} values",
        )
