"""Stands in for Triton's ONNX Runtime backend, which no package index carries: a backend in Python, run by Triton.

Everything else is Triton's own: reading and checking config.pbtxt, warm-up, batching, the protocol.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# The interpreter inside Triton's stub ignores PYTHONPATH.
sys.path.extend(os.environ["ODM_TRITON_SYS_PATH"].split(os.pathsep))

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance of a model; the name is Triton's."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the model of this version."""
        path = Path(arguments["model_repository"]) / arguments["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        # By DLPack: the stub misreads arrays of numpy 2, which is younger.
        names = [info.name for info in self._session.get_inputs()]
        feeds = {name: np.from_dlpack(triton.get_input_tensor_by_name(request, name)) for name in names}
        results = zip(self._session.get_outputs(), self._session.run(None, feeds), strict=True)
        return triton.InferenceResponse([triton.Tensor.from_dlpack(info.name, array) for info, array in results])
