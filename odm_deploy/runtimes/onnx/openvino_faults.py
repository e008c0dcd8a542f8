"""What OpenVINO 2026.4 does wrong with quantized graphs: those with products of matrices apart from all others.

Its low-precision passes can crash, and a crash of native code ends the process it happens in. The one known cause: a
Gather along a dynamic axis behind per-channel arithmetic, in any graph that quantizes something
(`GatherTransformation::canBeTransformed` reads a constant that is not there). Graphs made of nothing but what
convolutional networks consist of have never crashed, so only others are compiled in another process first.

It compiles a graph of dynamic height and width with other kernels and fusions than one of fixed size, and either may be
wrong. At dynamic size it is the sum of two int8 convolutions' results (a network whose first convolution is quantized,
too), and arithmetic per channel of maps of one pixel; at fixed size absolute values of whole numbers. Of the latter two
this project's own graphs spare it (`lowering.quirks`). So networks without products of matrices are compiled for
each size they meet, which is no slower to run and takes less than a second for EDSR-baseline; others are compiled once.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict
from hashlib import sha256
from typing import Any

from onnx import ModelProto

from odm_deploy.errors import InputError
from odm_deploy.machine.openvino_package import import_openvino

# fmt: off
_HARMLESS = {
    "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace",
    "DequantizeLinear", "Div", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Pad", "PRelu",
    "QuantizeLinear", "Relu", "Resize", "Round", "Shape", "Sub", "Transpose",
}
# fmt: on
_MULTIPLIES = {"Einsum", "Gemm", "MatMul"}
_QUANTIZES = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize"}
_TIMEOUT_S = 300.0
_COMPILABLE: set[bytes] = set()
"""Hashes of models that need no other process."""

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


def need_no_probe(model: bytes) -> None:
    """From now on this process compiles a model at once: another one did, or this one may crash."""
    _COMPILABLE.add(sha256(model).digest())


def probe(model: bytes, label: str) -> None:
    """Compile a serialized ONNX model in another process, for the CPU, unless it is known to need that no more.

    A mere refusal is left for the real compilation to report.

    Raises:
        InputError: the other process crashed or hung.
    """
    if sha256(model).digest() in _COMPILABLE:
        return
    command = [sys.executable, "-m", "odm_deploy.runtimes.onnx.openvino_faults"]
    try:
        done = subprocess.run(command, input=model, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unusable("does not get done", label, f"it does not end within {_TIMEOUT_S:g} s") from None
    # A signal is negative on POSIX, an exception of Windows a large number; Python itself ends with 0, 1 or 2.
    if done.returncode not in (0, 1, 2):
        raise _unusable("crashes", label, f"the process that tried ended with {done.returncode}")


def _unusable(what: str, label: str, why: str) -> InputError:
    return InputError(f"OpenVINO {what} compiling {label}", why=why, fix="use --runtime onnxruntime")


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


def _main() -> None:
    openvino = import_openvino()

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core.compile_model(core.read_model(sys.stdin.buffer.read()), "CPU", settings)


if __name__ == "__main__":
    _main()
