"""OpenVINO on the CPU: the fastest way to run a bundle where there is no GPU, torch-free and small to ship."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from onnx import ModelProto

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.installing import install_extra
from odm_deploy.lowering.metadata import is_marked_exact
from odm_deploy.lowering.unsaturated import for_openvino
from odm_deploy.machine.host import describe_cpu, physical_cpus
from odm_deploy.machine.openvino_package import import_openvino
from odm_deploy.runtimes.onnx.base import GraphRuntime
from odm_deploy.runtimes.onnx.openvino_faults import KEPT, CompiledSizes, Shapes, needs_probe, wants_fixed_sizes
from odm_deploy.runtimes.onnx.openvino_probe import probe
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array

# How OpenVINO spells precisions.
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoCpu(GraphRuntime):
    """A model compiled by OpenVINO for the CPU with the latency hint.

    The inference precision is always set: left alone, OpenVINO runs float layers in bf16 wherever the CPU can, which
    moves results far above the float32 noise floor. Exact models always run in fp32: between their integer convolutions
    lie float additions whose sums need up to 24 bits, and bf16 has 8.
    """

    name: ClassVar[str] = "openvino"
    rounding_note: ClassVar[str] = (
        "OpenVINO multiplies by the reciprocal of a quantizer's step where the reference divides by it, and quantizes "
        "to int8 around an offset of 128 in float32, so inputs on a rounding tie, or within 1e-5 of a step from one, "
        "may get the neighbouring code; deep low-bit networks amplify the few that do; and in profile integer at 8 "
        "bits it leaves out the quantizer between a convolution and a sum, which no comparison of single layers shows"
    )
    rounding_steps: ClassVar[float] = 2.0**-16

    def __init__(
        self, compiled: Any, sizes: CompiledSizes | None, version: str, graph: ModelProto, options: RuntimeOptions
    ) -> None:
        super().__init__(graph)
        self._compiled: Any = compiled
        self._sizes = sizes
        self._requests: OrderedDict[Shapes, Any] = OrderedDict()
        self.version = version
        self._options = options
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.device = describe_cpu(self._threads)

    @classmethod
    def _load(cls, model: bytes, graph: ModelProto, options: RuntimeOptions, label: str) -> Self:
        if not options.optimize:
            raise UsageError(
                "OpenVINO cannot run without its graph optimizations", fix="use the onnxruntime runtime for that"
            )
        if is_marked_exact(graph):
            options = dataclasses.replace(options, precision="fp32")
        if importlib.util.find_spec("openvino") is None:
            raise MissingError("openvino is not installed", fix=install_extra("cpu"))
        if needs_probe(graph):
            probe(model, label)
        openvino = import_openvino()

        core = openvino.Core()
        if options.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MissingError("this CPU has no bf16 instructions", fix="leave --precision bf16 out")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
            "INFERENCE_NUM_THREADS": options.threads or physical_cpus(),
            # Requests beyond the number of streams would wait for each other.
            "NUM_STREAMS": options.contexts,
        }
        given = for_openvino(model, graph)
        settings |= given.settings
        try:
            read = core.read_model(given.model)
            # Compiled as it is first: what OpenVINO refuses should be known on opening.
            compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot load {label}", why=_cause(error)) from error
        sizes = CompiledSizes(core, read, settings) if read.is_dynamic() and wants_fixed_sizes(graph) else None
        opened = cls(compiled, sizes, str(openvino.__version__), graph, options)
        opened.speed_note = given.speed_note
        return opened

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            request, ports = self._request_for(tuple((name, feed.shape) for name, feed in feeds.items()))
            # Inputs are shared for the duration of this synchronous call only; outputs are copied out below, because
            # the request reuses its own output memory on the next run.
            results = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise self._cannot_run(feeds, "OpenVINO", _cause(error)) from error
        return {name: np.array(results[port]) for name, port in ports.items()}

    def _request_for(self, shapes: Shapes) -> tuple[Any, dict[str, Any]]:
        """An inference request for these shapes, and the output ports by tensor name."""
        key = shapes if self._sizes is not None else ()
        if key not in self._requests:
            compiled = self._compiled if self._sizes is None else self._sizes.compiled_for(shapes)
            # Looked up by tensor name: OpenVINO may list ports in another order than the graph.
            ports = {info.name: compiled.output(info.name) for info in self.outputs}
            self._requests[key] = compiled.create_infer_request(), ports
            if len(self._requests) > KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]

    def _renew_run_state(self) -> None:
        self._requests = OrderedDict()

    def describe(self) -> dict[str, Any]:
        """As every runtime, and threads and the precision of the layers that are not int8."""
        return super().describe() | {"threads": self._threads, "precision": self._options.precision}

    def _release(self) -> None:
        self._requests = OrderedDict()
        self._sizes = None
        self._compiled = None


def _cause(error: RuntimeError) -> str:
    """The line of an OpenVINO exception that says something: most name its own source files, or announce another."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    unknown = [line for line in lines if line.startswith("No conversion rule")]
    noise = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted")
    telling = [line for line in lines if not line.startswith(noise) and not line.endswith(":")]
    return (unknown or telling or lines or [type(error).__name__])[0]
