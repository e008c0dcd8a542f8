"""A GPU of the worst kind, for machines without one: nothing queued on a stream happens before somebody waits for it.

The CUDA calls have the names and parameters of the real `cuda.bindings.runtime`, whose enumerations are used; device
memory is host memory. Work that forgets to wait for other work reads what was there before, and tests see it. What
real engines do on real GPUs is tested in `tests/gpu`.
"""

from __future__ import annotations

import ctypes
import inspect
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from odm_deploy.machine import gpus

Work = Callable[[], None]
DEFAULT_STREAMS = (0, 1, 2)
"""The legacy one, by both of its handles, and that of each thread."""


H100, RTX4090, RTX2080 = (
    gpus.Gpu(index, f"NVIDIA {name}", capability, 24_000, f"GPU-{index}")
    for index, (name, capability) in enumerate({"H100": (9, 0), "RTX 4090": (8, 9), "RTX 2080": (7, 5)}.items())
)


@contextmanager
def machine_with(*found: gpus.Gpu) -> Generator[None]:
    """A machine whose driver names these GPUs, in this order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "query_driver", lambda _: found)
        gpus.find_gpus.cache_clear()
        try:
            yield
        finally:
            gpus.find_gpus.cache_clear()


class SimulatedCuda:
    """Stands in for the module `cuda.bindings.runtime`."""

    def __init__(self) -> None:
        import cuda.bindings.runtime as real

        self._real = real
        self.memory: dict[int, Any] = {}
        self.pending: dict[int, list[Work]] = {0: []}
        self.done: dict[int, int] = {}
        self.events: dict[int, tuple[int, int] | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.launches: set[int] = set()
        self.capturing: int | None = None
        self._captured: list[Work] = []
        self._handles = iter(range(1000, 10**6))

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not name.startswith("cuda") or inspect.isclass(real) or not callable(real):
            return real
        simulated: Callable[..., Any] = getattr(self, f"_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            inspect.signature(real).bind(*arguments)
            result = simulated(*(int(each) if hasattr(each, "__int__") else each for each in arguments))
            return (0,) if result is None else (0, result)

        return call

    def queue(self, stream: int, work: Work) -> None:
        """Put work on a stream, or into the graph that is being captured from it."""
        if self.capturing == stream:
            self._captured.append(work)
        else:
            self.pending.setdefault(stream, []).append(work)

    def _run(self, stream: int, upto: int | None = None) -> None:
        queue = self.pending.get(stream, [])
        while queue and (upto is None or self.done.get(stream, 0) < upto):
            # Counted first: the work may itself wait for something earlier on this stream.
            self.done[stream] = self.done.get(stream, 0) + 1
            queue.pop(0)()

    def _new(self, table: dict[int, Any], value: Any) -> int:
        handle = next(self._handles)
        table[handle] = value
        return handle

    def _cudaMalloc(self, size: int) -> int:
        buffer = (ctypes.c_uint8 * size)(*b"\xa5" * size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _cudaHostAlloc(self, size: int, _: int) -> int:
        return self._cudaMalloc(size)

    def _cudaFree(self, address: int) -> None:
        for stream in list(self.pending):
            self._run(stream)
        del self.memory[address]

    def _cudaFreeHost(self, address: int) -> None:
        self._cudaFree(address)

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, _: int, stream: int) -> None:
        self.queue(stream, lambda: ctypes.memmove(target, source, size) and None)

    def _cudaStreamCreateWithFlags(self, _: int) -> int:
        return self._new(self.pending, [])

    def _cudaStreamDestroy(self, stream: int) -> None:
        self._run(stream)
        del self.pending[stream]

    def _cudaStreamSynchronize(self, stream: int) -> None:
        self._run(stream)

    def _cudaEventCreate(self) -> int:
        return self._new(self.events, None)

    def _cudaEventCreateWithFlags(self, _: int) -> int:
        return self._cudaEventCreate()

    def _cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    def _cudaEventRecord(self, event: int, stream: int) -> None:
        self.events[event] = (stream, self.done.get(stream, 0) + len(self.pending.setdefault(stream, [])))

    def _wait(self, point: tuple[int, int] | None) -> None:
        if point is not None:
            self._run(*point)

    def _cudaStreamWaitEvent(self, stream: int, event: int, _: int) -> None:
        point = self.events[event]
        self.queue(stream, lambda: self._wait(point))

    def _cudaEventSynchronize(self, event: int) -> None:
        self._wait(self.events[event])

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
        assert self.events[start] and self.events[end]
        return 0.25

    def _cudaStreamBeginCapture(self, stream: int, _: int) -> None:
        self.capturing, self._captured = stream, []

    def _cudaStreamEndCapture(self, _: int) -> int:
        self.capturing = None
        return self._new(self.graphs, list(self._captured))

    def _cudaGraphInstantiate(self, graph: int, _: int) -> int:
        return self._new(self.graphs, self.graphs[graph])

    def _cudaGraphLaunch(self, graph: int, stream: int) -> None:
        self.launches.add(stream)
        for work in self.graphs[graph]:
            self.queue(stream, work)

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cudaGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]


SMALLEST, BEST, LARGEST = (1, 3, 2, 2), (1, 3, 4, 4), (2, 3, 16, 16)


class _Context:
    """An execution context of a network that doubles height and width by repeating pixels."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.capturable = True
        self.refused = ""

    def set_optimization_profile_async(self, profile: int, _: int) -> bool:
        return profile == 0 and self.refused != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return name == "image" and self.refused != "shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, c, h, w = self._shape
        return self._shape if name == "image" else (n, c, 2 * h, 2 * w)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self.refused != "memory"

    def is_stream_capturable(self, stream: int) -> bool:
        return stream not in DEFAULT_STREAMS and self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert stream not in DEFAULT_STREAMS, "TensorRT synchronizes on the default stream"
        if self._cuda.capturing == stream and not self.capturable:
            return False
        source, target = (self._view(name, self._addresses[name]) for name in ("image", "sr"))
        self._cuda.queue(stream, lambda: np.copyto(target, source.repeat(2, 2).repeat(2, 3)))
        if self.profiler is not None:
            self._cuda.queue(stream, self._report)
        return True

    def _report(self) -> None:
        self.profiler.report_layer_time("rows", 0.5)
        self.profiler.report_layer_time("columns", 1.5)

    def _view(self, name: str, address: int) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
        return np.frombuffer(memory, np.float32).reshape(shape)


class SimulatedEngine:
    """Stands in for `trt.ICudaEngine`."""

    num_io_tensors = 2
    num_optimization_profiles = 1
    device_memory_size_v2 = 3 << 20

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self.refused = ""
        """The call that its contexts answer with False."""
        self.capturable = True

    def get_tensor_name(self, index: int) -> str:
        return ("image", "sr")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "image" else "output"

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return (-1, 3, -1, -1)

    def get_tensor_dtype(self, _: str) -> type:
        return np.float32

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> tuple[tuple[int, ...], ...]:
        return SMALLEST, BEST, LARGEST

    def create_execution_context(self) -> _Context:
        self.context = _Context(self._cuda)
        self.context.refused = self.refused
        self.context.capturable = self.capturable
        return self.context


class SimulatedKernelCache:
    """Stands in for `tensorrt_rtx.IRuntimeCache`: takes what one for the same GPU wrote, and counts its kernels."""

    def __init__(self, gpu: bytes) -> None:
        self._gpu = gpu
        self.kernels = 0

    def deserialize(self, blob: bytes) -> bool:
        gpu, _, kernels = blob.rpartition(b":")
        if gpu != self._gpu:
            return False
        self.kernels = int(kernels)
        return True

    def serialize(self) -> memoryview:
        return memoryview(b"%s:%d" % (self._gpu, self.kernels))


class SimulatedRuntimeConfig:
    """Stands in for `tensorrt_rtx.IRuntimeConfig`."""

    def __init__(self, gpu: bytes) -> None:
        self._gpu = gpu
        self._cache: SimulatedKernelCache | None = None
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = ""

    def create_runtime_cache(self) -> SimulatedKernelCache:
        return SimulatedKernelCache(self._gpu)

    def set_runtime_cache(self, cache: SimulatedKernelCache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> SimulatedKernelCache | None:
        return self._cache


class SimulatedRtxEngine(SimulatedEngine):
    """An engine of TensorRT for RTX, which compiles ten kernels unless its cache brings some."""

    def __init__(self, cuda: SimulatedCuda, gpu: bytes) -> None:
        super().__init__(cuda)
        self._gpu = gpu
        self.compiled = 0
        self.configs: list[weakref.ref[SimulatedRuntimeConfig]] = []

    def create_runtime_config(self) -> SimulatedRuntimeConfig:
        config = SimulatedRuntimeConfig(self._gpu)
        self.configs.append(weakref.ref(config))
        return config

    def create_execution_context(self, config: SimulatedRuntimeConfig) -> _Context:
        cache = config.get_runtime_cache()
        if cache is None or cache.kernels == 0:
            self.compiled += 10
            if cache is not None:
                cache.kernels = 10
        return super().create_execution_context()


TENSORRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="input"),
    IProfiler=type("IProfiler", (), {}),
    nptype=lambda kind: kind,
    __version__="10.13.0.35",
)
"""Stands in for the module `tensorrt`."""

TENSORRT_RTX = SimpleNamespace(
    TensorIOMode=TENSORRT.TensorIOMode,
    IProfiler=TENSORRT.IProfiler,
    nptype=TENSORRT.nptype,
    CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled"),
    DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    __version__="1.7.1.116",
)
"""Stands in for the module `tensorrt_rtx`."""
