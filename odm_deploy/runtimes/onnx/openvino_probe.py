"""Whether OpenVINO survives compiling a graph, found out in another process.

OpenVINO's low-precision passes can crash, and a crash of native code ends the process it happens in. The one known
cause, in 2026.4: a Gather along a dynamic axis behind per-channel arithmetic, in any graph that quantizes something
(`GatherTransformation::canBeTransformed` reads a constant that is not there). Graphs made of nothing but what
convolutional networks consist of have never crashed, so only others pay for a second compilation.
"""

from __future__ import annotations

import subprocess
import sys

from onnx import ModelProto

from odm_deploy.errors import InputError

# fmt: off
_HARMLESS = {
    "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace",
    "DequantizeLinear", "Div", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Pad", "PRelu",
    "QuantizeLinear", "Relu", "Resize", "Round", "Shape", "Sub", "Transpose",
}
# fmt: on
_QUANTIZES = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize"}
_TIMEOUT_S = 300.0


def quantizes(graph: ModelProto) -> bool:
    """Whether a graph holds quantizers, which switch the low-precision passes on."""
    return any(node.op_type in _QUANTIZES for node in graph.graph.node)


def needs_probe(graph: ModelProto) -> bool:
    """Whether a graph holds quantizers, and operators that the low-precision passes may stumble on."""
    return quantizes(graph) and not {node.op_type for node in graph.graph.node} <= _HARMLESS


def probe(model: bytes, label: str) -> None:
    """Compile a serialized ONNX model in another process, for the CPU.

    A mere refusal is left for the real compilation to report.

    Raises:
        InputError: the other process crashed or hung.
    """
    command = [sys.executable, "-m", "odm_deploy.runtimes.onnx.openvino_probe"]
    try:
        done = subprocess.run(command, input=model, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unusable(label, f"it does not end within {_TIMEOUT_S:g} s") from None
    # A signal is negative on POSIX, an exception of Windows a large number; Python itself ends with 0, 1 or 2.
    if done.returncode not in (0, 1, 2):
        raise _unusable(label, f"the process that tried ended with {done.returncode}")


def _unusable(label: str, why: str) -> InputError:
    return InputError(f"OpenVINO crashes compiling {label}", why=why, fix="use --runtime onnxruntime")


def _main() -> None:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core.compile_model(core.read_model(sys.stdin.buffer.read()), "CPU", settings)


if __name__ == "__main__":
    _main()
