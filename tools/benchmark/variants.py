"""What is timed: one network in every form that somebody might run, as functions of an image.

Every form is compiled for the size it is timed at, which is the best each runtime can do. Rivals' files are opened as
their users open them: this project's runtimes change graphs that saturate on CPUs without VNNI, or that crash.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from odm_deploy.errors import InputError
from odm_deploy.machine.host import physical_cpus
from odm_deploy.machine.openvino_package import import_openvino
from odm_deploy.runtimes.base import Runtime, RunTimes
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import runtime_class
from odm_deploy.runtimes.tensor_info import Array

Image = NDArray[np.float32]
"""float32 [1, 3, H, W], 0..255."""


@dataclass(frozen=True)
class Variant:
    """One form of a network on one runtime."""

    name: str
    """Whose it is and how it is quantized: `float`, `NNCF performance`, `integer 8`."""
    runtime: str
    """`onnxruntime` or `openvino`."""
    precision: str
    """Arithmetic of what is not int8: `fp32` or `bf16`."""
    model: ModelProto | Path
    """Ours, or a rival's ONNX file or .xml file of OpenVINO."""

    @property
    def key(self) -> str:
        """Tells it from all others of the network."""
        return f"{self.name}, {self.runtime}{' bf16' if self.precision == 'bf16' else ''}"

    def open(self, size: tuple[int, int]) -> Opened:
        """Ready to be timed on images of (height, width) pixels.

        Raises:
            InputError: the runtime does not load it.
        """
        options = RuntimeOptions(precision="bf16" if self.precision == "bf16" else "fp32")
        if isinstance(self.model, Path):
            files = {"onnxruntime": OnnxRuntimeFile, "openvino": OpenVinoFile}
            try:
                return files[self.runtime](self.model, size, options)
            except Exception as error:  # a runtime may say anything of a file that somebody else's quantizer made
                raise InputError(f"{self.runtime} does not load {self.model.name}", why=str(error)[-200:]) from error
        fixed = _of_one_size(self.model, size)
        return runtime_class(self.runtime).open_bytes(fixed.SerializeToString(), options, label=self.key)


def _of_one_size(model: ModelProto, size: tuple[int, int]) -> ModelProto:
    """A copy for one image of (height, width) pixels."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for dimension, value in zip(fixed.graph.input[0].type.tensor_type.shape.dim, (1, 3, *size), strict=True):
        dimension.dim_value = value
    for dimension in fixed.graph.output[0].type.tensor_type.shape.dim:
        dimension.Clear()
    return fixed


class _RivalsFile(ABC):
    """A model that is run as it is, with the settings that this project gives to its own."""

    def timed_run(self, feeds: Mapping[str, Array]) -> RunTimes:
        """As a `Runtime`'s: a run from arrays in host memory to arrays in host memory."""
        started = time.perf_counter()
        self.upscale(next(iter(feeds.values())))
        return RunTimes((time.perf_counter() - started) * 1e3)

    @abstractmethod
    def upscale(self, image: Array) -> Array:
        """What comes out, [1, 3, H', W']."""


class OpenVinoFile(_RivalsFile):
    """On OpenVINO: latency hint, one thread a core."""

    def __init__(self, path: Path, size: tuple[int, int], options: RuntimeOptions) -> None:
        openvino = import_openvino()

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([1, 3, *size])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[options.precision],
            "INFERENCE_NUM_THREADS": physical_cpus(),
            "NUM_STREAMS": 1,
        }
        self._request: Any = core.compile_model(model, "CPU", settings).create_infer_request()

    def upscale(self, image: Array) -> Array:
        """What comes out, [1, 3, H', W']."""
        return np.array(self._request.infer([image], share_inputs=True, share_outputs=True)[0])

    def close(self) -> None:
        """Let the model go."""
        self._request = None


class OnnxRuntimeFile(_RivalsFile):
    """On ONNX Runtime: all optimizations, one thread a core."""

    def __init__(self, path: Path, size: tuple[int, int], _options: RuntimeOptions) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = physical_cpus()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        model = _of_one_size(onnx.load(path), size).SerializeToString()
        self._session: Any = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def upscale(self, image: Array) -> Array:
        """What comes out, [1, 3, H', W']."""
        return self._session.run(None, {self._session.get_inputs()[0].name: image})[0]

    def close(self) -> None:
        """Let the model go."""
        self._session = None


Opened = Runtime | OpenVinoFile | OnnxRuntimeFile


def upscaler(opened: Opened) -> Callable[[Image], Array]:
    """An opened variant as a function."""
    return opened.upscale
