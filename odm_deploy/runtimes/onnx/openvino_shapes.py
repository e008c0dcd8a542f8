"""One OpenVINO compilation for each image size, for graphs that are not computed rightly at dynamic size.

OpenVINO 2026.4 compiles a graph of dynamic height and width with other kernels and fusions than one of fixed size, and
either may be wrong. At dynamic size it is the sum of two int8 convolutions' results (a network whose first convolution
is quantized, too); at fixed size the attention of SwinIR. So convolutional networks are compiled for each size they
meet, which is no slower to run and takes less than a second for EDSR-baseline; others are compiled once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from onnx import ModelProto

from odm_deploy.runtimes.onnx.openvino_probe import needs_probe, quantizes

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every input."""

KEPT = 4
"""Compiled sizes kept, the last ones used; tiles of one image come in up to four."""


def wants_fixed_sizes(graph: ModelProto) -> bool:
    """Whether a graph is a quantized network of convolutions and nothing else."""
    return quantizes(graph) and not needs_probe(graph)


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
