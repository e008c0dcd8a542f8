"""TensorRT engines: what the data-centre library (10.13 to 11) and TensorRT for RTX have in common.

Only names present in all of these are used: `execute_async_v3`, `set_tensor_address`, `set_input_shape`.
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.bundle.plan_header import REBUILD, PlanHeader
from odm_deploy.bundle.plan_target import built_for, require_gpu
from odm_deploy.errors import InputError, MissingError, OdmError, UsageError
from odm_deploy.graphs.input_shapes import InputShapes, Shape
from odm_deploy.machine.builders import TENSORRT, find_builder
from odm_deploy.machine.gpus import find_gpus, require_any_gpu
from odm_deploy.runtimes.base import Runtime, RunTimes
from odm_deploy.runtimes.dlpack import BorrowedTensor, Tensors
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array, TensorInfo
from odm_deploy.runtimes.tensorrt.binding import ShapeBinding
from odm_deploy.runtimes.tensorrt.cuda import Cuda
from odm_deploy.runtimes.tensorrt.device_tensors import DeviceArray, borrow_tensors, new_arrays
from odm_deploy.runtimes.tensorrt.listeners import make_layer_timer, make_log
from odm_deploy.runtimes.tensorrt.profiles import find_profile, image_shapes

# Each shape in use holds an execution context with its activation memory; a tiled image needs at most four shapes
# (inner, right, bottom, corner).
_KEPT_SHAPES = 4


class TensorRtEngine(Runtime):
    """An engine of TensorRT, run on GPU 0 with its own stream and one CUDA graph per input shape."""

    name: ClassVar[str] = TENSORRT
    model_kind: ClassVar[ModelKind] = "plan"
    on_gpu: ClassVar[bool] = True

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, log: Any, options: RuntimeOptions, device: str) -> None:
        super().__init__()
        self._trt = trt
        self.version = str(trt.__version__)
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
        require_gpu(bundle.plan_header, facts, find_gpus(), label=label)
        origin = built_for(facts)
        label = f"{label} ({origin})" if origin else label
        # Such a plan brings code of its own, with which later versions run it: open it only if you would run a program
        # from the same source.
        brings_code = bool(facts.get("version_compatible"))
        return cls._load_bytes(plan, cls._options_for(plan, options), label, version_compatible=brings_code)

    @classmethod
    def _load_bytes(
        cls, model: bytes, options: RuntimeOptions, label: str, *, version_compatible: bool = False
    ) -> Self:
        if not options.optimize or options.precision != "fp32":
            raise UsageError(
                f"{cls.name} cannot change how an engine computes", fix="build another engine, or leave the option out"
            )
        header = PlanHeader.of_bytes(model, label=label)
        header.require_builder(cls.name, label=label)
        require_gpu(header, {}, find_gpus(), label=label)
        trt = cls._import()
        if not version_compatible:
            header.require_version(str(trt.__version__), label=label)
        cuda = Cuda.load()
        log = make_log(trt)
        runtime = trt.Runtime(log)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(model)
        if engine is None:
            raise InputError(f"{cls.name} cannot load {label}", why=log.last_error, fix=REBUILD)
        return cls(trt, engine, cuda, log, options, find_gpus()[0].name)

    @classmethod
    def _options_for(cls, plan: bytes, options: RuntimeOptions) -> RuntimeOptions:
        """Options of a plan that lies in a file and may be opened again, unlike one built to be thrown away."""
        return options

    @classmethod
    def _import(cls) -> Any:
        builder, what = find_builder(cls.name), f"cannot run engines of {cls.name}"
        # First: without a GPU, installing TensorRT would be of no use.
        require_any_gpu(what)
        if not builder.usable:
            raise MissingError(what, why=builder.problem, fix=builder.install)
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
        events = [self._cuda.event(timed=True) for _ in range(4)]
        self._stream.record(events[0])
        for event, step in zip(events[1:], (binding.upload, binding.compute, binding.download), strict=True):
            step()
            self._stream.record(event)
        self._stream.synchronize()
        h2d, compute, d2h = (start.ms_until(end) for start, end in pairwise(events))
        return RunTimes(latency_ms=h2d + compute + d2h, h2d_ms=h2d, compute_ms=compute, d2h_ms=d2h)

    def back_to_back_ms(self, feeds: Mapping[str, Array], runs: int) -> float:
        """Mean milliseconds of GPU compute of runs queued one behind the other, on the same input.

        A single run waits for the host to launch it, some 10 us between the events around it; of these, the host
        launches each while the one before still computes. Raises as `run`.
        """
        checked = self._check(feeds)
        with self._lock:
            self._require_open()
            binding = self._bind(checked)
            binding.fill(checked)
            binding.upload()
            # The first one is launched late, and not counted.
            binding.compute()
            start, end = self._cuda.event(timed=True), self._cuda.event(timed=True)
            self._stream.record(start)
            for _ in range(runs):
                binding.compute()
            self._stream.record(end)
            self._stream.synchronize()
            return start.ms_until(end) / runs

    def layer_times_ms(self, feeds: Mapping[str, Array], runs: int) -> dict[str, float]:
        """Mean milliseconds that each layer of the engine takes, by its name there, as TensorRT itself measures them.

        Measuring costs time, and happens kernel by kernel: the sum is more than a run takes. Raises as `run`.
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

    def run_on_device(self, feeds: Tensors, out: Tensors | None = None, stream: int | None = None) -> Tensors:
        """As `Runtime.run_on_device`."""
        with self._lock:
            self._require_open()
            theirs = None if stream is None else self._cuda.borrowed_stream(stream)
            handle = int(self._stream.handle) if stream is None else stream
            sources = borrow_tensors(feeds, self.inputs, handle)
            binding = self._bind(sources)
            shapes = binding.output_shapes
            wanted = [TensorInfo(info.name, info.dtype, shapes[info.name]) for info in self.outputs]
            results: Tensors
            targets: Mapping[str, BorrowedTensor | DeviceArray]
            done = self._cuda.event()
            if out is None:
                results = targets = new_arrays(self._cuda, wanted, done)
            else:
                results, targets = dict(out), borrow_tensors(out, wanted, handle)
            if theirs is not None:
                # Their stream is usually the default one, which TensorRT must not compute on: two events join it
                # to ours, so that on theirs everything happens in the order of the calls.
                given = self._cuda.event()
                theirs.record(given)
                self._stream.wait_for(given)
            binding.run_between(
                {name: tensor.pointer for name, tensor in sources.items()},
                {name: tensor.pointer for name, tensor in targets.items()},
            )
            self._stream.record(done)
            if theirs is None:
                done.synchronize()
            else:
                theirs.wait_for(done)
        return results

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
        if context is None:
            why = f"{self._log.last_error}; often there is too little GPU memory"
            raise OdmError(f"{self.name} could not create an execution context", why=why)
        capture = graphs and self._captures_graphs
        binding = ShapeBinding(self._cuda, self._stream, context, profile, feeds, self.outputs, capture=capture)
        if graphs and not binding.capture_failure:
            binding.capture_failure = self._why_not_captured(context)
        if binding.capture_failure:
            self.speed_note = f"kernels are launched one by one, without a CUDA graph: {binding.capture_failure}"
        return binding

    def _profile_for(self, feeds: Mapping[str, Array | BorrowedTensor]) -> int:
        return find_profile(self._engine, self.inputs, {name: array.shape for name, array in feeds.items()})

    _captures_graphs: ClassVar[bool] = True
    """Whether graphs are captured here, around TensorRT."""

    def _make_context(self, graphs: bool) -> Any:
        """A new execution context; None where TensorRT fails."""
        return self._engine.create_execution_context()

    def _why_not_captured(self, context: Any) -> str:
        """Why a context that captures graphs by itself does not do so; empty where it does, and for those of others."""
        return ""

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

    def image_shapes(self, shape: Shape) -> InputShapes:
        """The profile that images [N, 3, H, W] of this shape run in: what another engine needs to be built alike.

        Raises:
            InputError: several inputs or outputs, or a shape the engine was not built for.
        """
        source, _ = self.single_image_edges()
        own = source.images.from_rgb(np.zeros(shape, source.dtype))
        return image_shapes(self._engine, source, self._profile_for({source.name: own}))

    def typical_shape(self) -> tuple[int, ...]:
        """The shape the engine's kernels were chosen for: the first profile's optimum."""
        _, best, _ = self._engine.get_tensor_profile_shape(self.inputs[0].name, 0)
        return tuple(best)

    def describe(self) -> dict[str, Any]:
        """As every runtime, and whether runs replay a CUDA graph, and what each shape in use takes at most."""
        # Of the profile's largest shape; weights and image buffers come on top.
        memory_mib = self._context_bytes >> 20
        failed = any(binding.capture_failure for binding in list(self._bindings.values()))
        graphs = self._options.cuda_graph and not failed
        return super().describe() | {"cuda_graph": graphs, "context_memory_mib": memory_mib}

    def _release(self) -> None:
        for binding in self._bindings.values():
            binding.close()
        self._bindings.clear()
        self._stream.close()
        self._engine = None
