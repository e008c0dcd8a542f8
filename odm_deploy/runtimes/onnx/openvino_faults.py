"""What OpenVINO 2026.4 does wrong with quantized graphs: those with products of matrices apart from all others.

Its low-precision passes can crash, and a crash of native code ends the process it happens in. The one known cause: a
Gather along a dynamic axis behind per-channel arithmetic, in any graph that quantizes something
(`GatherTransformation::canBeTransformed` reads a constant that is not there). Graphs made of nothing but what
convolutional networks consist of have never crashed, so only others are compiled in another process first
(`openvino_probe`).

It compiles a graph of dynamic height and width with other kernels and fusions than one of fixed size, and either may be
wrong. At dynamic size it is the sum of two int8 convolutions' results (a network whose first convolution is quantized,
too), and arithmetic per channel of maps of one pixel; at fixed size absolute values of whole numbers. Of the latter two
this project's own graphs spare it (`lowering.quirks`). So networks without products of matrices are compiled for
each size they meet, which is no slower to run and takes less than a second for EDSR-baseline; others are compiled once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from onnx import ModelProto

# fmt: off
_HARMLESS = {
    "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace",
    "DequantizeLinear", "Div", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Pad", "PRelu",
    "QuantizeLinear", "Relu", "Resize", "Round", "Shape", "Sub", "Transpose",
}
# fmt: on
_MULTIPLIES = {"Einsum", "Gemm", "MatMul"}
_QUANTIZES = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize"}

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every input."""

KEPT = 4
"""Compiled sizes kept, the last ones used; tiles of one image come in up to four."""


def needs_probe(graph: ModelProto) -> bool:
    """Whether a graph holds quantizers, which switch the low-precision passes on, and operators they may stumble on."""
    kinds = {node.op_type for node in graph.graph.node}
    return bool(kinds & _QUANTIZES) and not kinds <= _HARMLESS


def wants_fixed_sizes(graph: ModelProto) -> bool:
    """Whether a graph is a quantized network without products of matrices."""
    kinds = {node.op_type for node in graph.graph.node}
    return bool(kinds & _QUANTIZES) and not kinds & _MULTIPLIES


class CompiledSizes:
    """A model compiled anew for each combination of input shapes; safe to share between threads."""

    def __init__(self, core: Any, model: Any, settings: dict[str, Any]) -> None:
        self._core, self._model, self._settings = core, model, settings
        self._compiled: OrderedDict[Shapes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def compiled_for(self, shapes: Shapes) -> Any:
        """The `openvino.CompiledModel` for these shapes.

        Raises:
            RuntimeError: OpenVINO refuses them.
        """
        with self._lock:
            if shapes not in self._compiled:
                fixed = self._model.clone()
                fixed.reshape({name: list(shape) for name, shape in shapes})
                self._compiled[shapes] = self._core.compile_model(fixed, "CPU", self._settings)
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(shapes)
            return self._compiled[shapes]
