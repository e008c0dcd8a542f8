"""Engines of TensorRT for RTX: kernels compiled where they run, and CUDA graphs that it captures by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from odm_deploy.machine.builders import TENSORRT_RTX
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.kernel_cache import KernelCache, file_in_folder


class TensorRtRtxEngine(TensorRtEngine):
    """An engine of TensorRT for RTX, which compiles its kernels for the GPU at hand when it is loaded."""

    name: ClassVar[str] = TENSORRT_RTX

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, log: Any, options: RuntimeOptions, device: str) -> None:
        super().__init__(trt, engine, cuda, log, options, device)
        # A context keeps a bare pointer to the configuration it was made with.
        self._configs: dict[bool, Any] = {}
        self._kernels = None if options.kernel_cache is None else KernelCache(options.kernel_cache)

    @classmethod
    def _options_for(cls, plan: bytes, options: RuntimeOptions) -> RuntimeOptions:
        return options if options.kernel_cache else replace(options, kernel_cache=file_in_folder(plan))

    # It captures by itself (below); a capture around its just-in-time compilation would fail.
    _captures_graphs: ClassVar[bool] = False

    def _why_not_captured(self, context: Any) -> str:
        if context.is_stream_capturable(int(self._stream.handle)):
            return ""
        return "TensorRT for RTX cannot capture this engine"

    def _make_context(self, graphs: bool) -> Any:
        if graphs not in self._configs:
            self._configs[graphs] = self._new_config(graphs)
        return self._engine.create_execution_context(self._configs[graphs])

    def _new_config(self, graphs: bool) -> Any:
        config = self._engine.create_runtime_config()
        strategy = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
        # Eager: kernels for a shape are final before its first run, so that timings do not drift while LAZY ones land.
        specialization = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._kernels is not None:
            self._kernels.attach(config)
        return config

    def describe(self) -> dict[str, Any]:
        """As every engine, and the file that compiled kernels are kept in."""
        return super().describe() | {"kernel_cache": str(self._options.kernel_cache or "") or None}

    def _release(self) -> None:
        try:
            if self._kernels is not None:
                self._kernels.save()
        finally:
            super()._release()
            self._configs = {}
