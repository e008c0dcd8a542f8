"""TensorRT engines: one class for the data-centre library (10.13 to 11) and for TensorRT for RTX.

Only names present in all of these are used: `execute_async_v3`, `set_tensor_address`, `set_input_shape`.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.bundle.plan_header import REBUILD, PlanHeader
from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.machine.builders import TENSORRT, TENSORRT_RTX, find_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.base import Array, Runtime, RuntimeOptions, RunTimes, TensorInfo
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor, SupportsDlpack
from odm_deploy.runtimes.tensorrt.binding import ShapeBinding, make_layer_timer
from odm_deploy.runtimes.tensorrt.cuda import Cuda, Event
from odm_deploy.runtimes.tensorrt.device_array import DeviceArray
from odm_deploy.runtimes.tensorrt.kernel_cache import KernelCache, file_in_folder
from odm_deploy.runtimes.tensorrt.plan_file import built_for, require_gpu

# Each shape in use holds an execution context with its activation memory; a tiled image needs at most four shapes
# (inner, right, bottom, corner).
_KEPT_SHAPES = 4
_GPU = (CUDA, 0)


class TensorRtEngine(Runtime):
    """An engine of TensorRT, run on GPU 0 with its own stream and one CUDA graph per input shape."""

    name: ClassVar[str] = TENSORRT
    model_kind: ClassVar[ModelKind] = "plan"
    on_gpu: ClassVar[bool] = True

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, log: Any, options: RuntimeOptions, device: str) -> None:
        super().__init__()
        self._trt = trt
        self._engine: Any = engine
        self._cuda = cuda
        # TensorRT keeps a bare pointer to its logger: it has to outlive the engine.
        self._log = log
        self._options = options
        # Execution contexts belong to one thread at a time, and so does making them; shared by all `another` runtimes.
        self._making_contexts = threading.Lock()
        self._stream = cuda.stream()
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], ShapeBinding] = OrderedDict()
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in tensors}
        self.inputs = tuple(self._info(name) for name in tensors if is_input[name])
        self.outputs = tuple(self._info(name) for name in tensors if not is_input[name])
        self.device = device
        self._context_bytes = int(engine.device_memory_size_v2)

    @classmethod
    def _open_bundle(cls, bundle: Bundle, options: RuntimeOptions) -> Self:
        plan, facts, label = bundle.plan_bytes, bundle.engine_facts, str(bundle.plan_path)
        for gpu in find_gpus()[:1]:
            require_gpu(facts, gpu, label=label)
        origin = built_for(facts)
        return cls.open_bytes(
            plan,
            cls._options_for(plan, options),
            label=f"{label} ({origin})" if origin else label,
            version_compatible=bool(facts.get("version_compatible")),
        )

    @classmethod
    def open_bytes(
        cls,
        model: bytes,
        options: RuntimeOptions | None = None,
        *,
        label: str = "the plan",
        version_compatible: bool = False,
    ) -> Self:
        """Deserialize an engine.

        Args:
            model: a serialized engine.
            options: how to run it.
            label: names it in error messages.
            version_compatible: the plan brings code of its own, with which later versions run it. Only for plans from
                where you would take a program from.

        Raises:
            InputError: these bytes are no engine, or one of another TensorRT, version or GPU.
            MissingError: TensorRT, cuda-python or a GPU is missing.
            UsageError: unoptimized execution or bf16 was asked for: both are decided when the engine is built.
        """
        chosen = options or RuntimeOptions()
        if not chosen.optimize or chosen.precision != "fp32":
            raise UsageError(
                f"{cls.name} cannot change how an engine computes", fix="build another engine, or leave the option out"
            )
        header = PlanHeader.of_bytes(model, label=label)
        header.require_builder(cls.name, label=label)
        trt = cls._import()
        if not version_compatible:
            header.require_version(str(trt.__version__), label=label)
        cuda = Cuda.load()
        log = _make_log(trt)
        runtime = trt.Runtime(log)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(model)
        if engine is None:
            raise InputError(f"{cls.name} cannot load {label}", why=log.last_error, fix=REBUILD)
        return cls(trt, engine, cuda, log, chosen, find_gpus()[0].name)

    @classmethod
    def _options_for(cls, plan: bytes, options: RuntimeOptions) -> RuntimeOptions:
        """Options of a plan that lies in a file and may be opened again, unlike one built to be thrown away."""
        return options

    @classmethod
    def _import(cls) -> Any:
        builder = find_builder(cls.name)
        if not builder.usable:
            raise MissingError(f"cannot run engines of {cls.name}", why=builder.problem, fix=builder.install)
        if not find_gpus():
            raise MissingError(
                f"cannot run engines of {cls.name}",
                why="the driver finds no NVIDIA GPU",
                fix="run the bundle's model.onnx on the CPU with --runtime openvino (pip install 'odm-deploy[cpu]')",
            )
        return importlib.import_module(cls.name)

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._bind(feeds)
        binding.fill(feeds)
        binding.upload()
        binding.compute()
        binding.download()
        self._stream.synchronize()
        return binding.results()

    def _execute_timed(self, feeds: Mapping[str, Array]) -> RunTimes:
        binding = self._bind(feeds)
        binding.fill(feeds)
        with self._cuda.events(4) as events:
            self._stream.record(events[0])
            for event, step in zip(events[1:], (binding.upload, binding.compute, binding.download), strict=True):
                step()
                self._stream.record(event)
            self._stream.synchronize()
            h2d, compute, d2h = (self._cuda.elapsed_ms(events[at], events[at + 1]) for at in range(3))
        return RunTimes(latency_ms=h2d + compute + d2h, h2d_ms=h2d, compute_ms=compute, d2h_ms=d2h)

    def layer_times_ms(self, feeds: Mapping[str, Array], runs: int) -> dict[str, float]:
        """Mean milliseconds that each layer of the engine takes, by its name there, as TensorRT itself measures them.

        Measuring costs time, and happens kernel by kernel: the sum is more than a run takes. Raises as `run` does.
        """
        checked = self._check(feeds)
        with self._lock:
            self._require_open()
            binding = self._new_binding(checked, self._profile_for(checked), graphs=False)
            timer = make_layer_timer(self._trt)
            try:
                binding.fill(checked)
                binding.upload()
                binding.time_layers(timer, runs)
            finally:
                binding.close()
        return {name: total / runs for name, total in timer.total_ms.items()}

    def run_on_device(
        self,
        feeds: Mapping[str, SupportsDlpack],
        out: Mapping[str, SupportsDlpack] | None = None,
        stream: int | None = None,
    ) -> Mapping[str, SupportsDlpack]:
        """Run on tensors in GPU memory; see `Runtime.run_on_device`.

        Raises:
            InputError: a tensor is missing, unknown, on another device, not contiguous, or does not fit.
        """
        with self._lock:
            self._require_open()
            queue = self._stream if stream is None else self._cuda.borrowed_stream(stream)
            sources = self._borrow(feeds, self.inputs, stream)
            binding = self._bind(sources)
            shapes = binding.output_shapes
            wanted = [TensorInfo(info.name, info.dtype, shapes[info.name]) for info in self.outputs]
            results: Mapping[str, SupportsDlpack]
            targets: Mapping[str, BorrowedTensor | DeviceArray]
            ready = self._cuda.event()
            if out is None:
                results = targets = self._allocate(wanted, ready)
            else:
                results, targets = dict(out), self._borrow(out, wanted, stream)
            binding.run_on(
                queue,
                {name: tensor.pointer for name, tensor in sources.items()},
                {name: tensor.pointer for name, tensor in targets.items()},
            )
            queue.record(ready.handle)
            if stream is None:
                ready.synchronize()
        return results

    def _borrow(
        self, tensors: Mapping[str, SupportsDlpack], wanted: Sequence[TensorInfo], stream: int | None
    ) -> dict[str, BorrowedTensor]:
        """Look into tensors of other libraries, which make `stream` wait for what they still write."""
        if set(tensors) != {info.name for info in wanted}:
            raise InputError(
                f"these are not the tensors of the engine on {self.name}",
                why=f"given {sorted(tensors)}, it has {sorted(info.name for info in wanted)}",
            )
        # DLPack knows the legacy default stream, whose handle is 0, by the number 1.
        handle = (int(self._stream.handle) if stream is None else stream) or 1
        borrowed: dict[str, BorrowedTensor] = {}
        for info in wanted:
            source = tensors[info.name]
            place = source.__dlpack_device__()
            if tuple(map(int, place)) != _GPU:
                raise InputError(
                    f"tensor {info.name!r} is not in the memory of GPU 0",
                    why=f"its DLPack device is {tuple(map(int, place))}",
                    fix="move it there, or pass arrays in host memory to `run`",
                )
            tensor = BorrowedTensor(source, stream=handle, label=f"tensor {info.name!r}")
            info.check(tensor)
            borrowed[info.name] = tensor
        return borrowed

    def _allocate(self, wanted: Sequence[TensorInfo], ready: Event) -> dict[str, DeviceArray]:
        """New arrays, whose consumers wait for `ready`."""

        def let_wait(stream: int) -> None:
            self._cuda.borrowed_stream(stream).wait_for(ready)

        arrays: dict[str, DeviceArray] = {}
        for info in wanted:
            shape = tuple(size or 0 for size in info.shape)
            pointer = self._cuda.allocate(math.prod(shape) * info.dtype.itemsize)
            # Freeing waits for work that uses the memory: callers may drop a result before it is there.
            arrays[info.name] = DeviceArray(pointer, shape, info.dtype, _GPU, self._cuda.free, let_wait)
        return arrays

    def _bind(self, feeds: Mapping[str, Array | BorrowedTensor]) -> ShapeBinding:
        """The context, buffers and graph for these shapes: kept from before, or made now in place of the oldest."""
        key = tuple(feeds[info.name].shape for info in self.inputs)
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        profile = self._profile_for(feeds)
        while len(self._bindings) >= _KEPT_SHAPES:
            self._bindings.popitem(last=False)[1].close()
        self._bindings[key] = self._new_binding(feeds, profile, graphs=self._options.cuda_graph)
        return self._bindings[key]

    def _new_binding(self, feeds: Mapping[str, Array | BorrowedTensor], profile: int, *, graphs: bool) -> ShapeBinding:
        with self._making_contexts:
            context = self._make_context(graphs)
        capture = graphs and self._captures_graphs
        return ShapeBinding(self._cuda, self._stream, context, profile, feeds, self.outputs, capture=capture)

    def _profile_for(self, feeds: Mapping[str, Array | BorrowedTensor]) -> int:
        """The index of the first optimization profile that these shapes lie in."""
        ranges: list[str] = []
        for profile in range(self._engine.num_optimization_profiles):
            limits = {info.name: self._limits(info.name, profile) for info in self.inputs}
            if all(_within(feeds[name].shape, low, high) for name, (low, high) in limits.items()):
                return profile
            ranges.extend(f"{name} {_dims(low)} to {_dims(high)}" for name, (low, high) in limits.items())
        given = ", ".join(f"{name} {_dims(array.shape)}" for name, array in feeds.items())
        raise InputError(
            f"the engine was not built for {given}",
            why=f"its profile spans {'; '.join(ranges)}",
            fix="use tiles or images within it, or export again with a wider profile",
        )

    def _limits(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(low), tuple(high)

    _captures_graphs: ClassVar[bool] = True
    """Whether graphs are captured here, around TensorRT."""

    def _make_context(self, graphs: bool) -> Any:
        return self._engine.create_execution_context()

    def _info(self, name: str) -> TensorInfo:
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(self._trt.nptype(kind))
        except TypeError as error:
            raise InputError(f"the engine's tensor {name!r} is {kind}", why="numpy has no such type") from error
        return TensorInfo(name, dtype, shape)

    def _renew_run_state(self) -> None:
        self._stream = self._cuda.stream()
        self._bindings = OrderedDict()

    def typical_shape(self) -> tuple[int, ...]:
        """The shape the engine's kernels were chosen for: the first profile's optimum."""
        _, best, _ = self._engine.get_tensor_profile_shape(self.inputs[0].name, 0)
        return tuple(best)

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, whether runs replay a CUDA graph, and what each shape in use takes at most."""
        return {
            "runtime": self.name,
            "version": str(self._trt.__version__),
            "device": self.device,
            "cuda_graph": self._options.cuda_graph,
            # Of the profile's largest shape; weights and image buffers come on top.
            "context_memory_mib": self._context_bytes >> 20,
        }

    def _release(self) -> None:
        for binding in self._bindings.values():
            binding.close()
        self._bindings.clear()
        self._stream.close()
        self._engine = None


class TensorRtRtxEngine(TensorRtEngine):
    """An engine of TensorRT for RTX, which compiles its kernels for the GPU at hand when it is loaded."""

    name: ClassVar[str] = TENSORRT_RTX

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, log: Any, options: RuntimeOptions, device: str) -> None:
        super().__init__(trt, engine, cuda, log, options, device)
        self._kernels = None if options.kernel_cache is None else KernelCache(options.kernel_cache)

    @classmethod
    def _options_for(cls, plan: bytes, options: RuntimeOptions) -> RuntimeOptions:
        return options if options.kernel_cache else replace(options, kernel_cache=file_in_folder(plan))

    # It captures by itself (below); a capture around its just-in-time compilation would fail.
    _captures_graphs: ClassVar[bool] = False

    def _make_context(self, graphs: bool) -> Any:
        config = self._engine.create_runtime_config()
        strategy = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
        # Eager: kernels for a shape are final before its first run, so that timings do not drift while LAZY ones land.
        specialization = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._kernels is not None:
            self._kernels.attach(config)
        return self._engine.create_execution_context(config)

    def describe(self) -> dict[str, Any]:
        """As every engine, and the file that compiled kernels are kept in."""
        return {**super().describe(), "kernel_cache": str(self._options.kernel_cache or "") or None}

    def _release(self) -> None:
        try:
            if self._kernels is not None:
                self._kernels.save()
        finally:
            super()._release()


def _make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps the last error for our own message instead of printing it."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "TensorRT gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message.strip()

    return Log()


def _within(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> bool:
    return all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
