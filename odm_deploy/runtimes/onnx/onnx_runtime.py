"""ONNX Runtime: the most widely installed way to run a bundle, and the reference among the integer runtimes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import onnx

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.installing import install_extra
from odm_deploy.lowering.unsaturated import Unsaturated, for_onnxruntime
from odm_deploy.machine.host import describe_cpu, physical_cpus
from odm_deploy.runtimes.onnx.base import GraphRuntime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array

# 0 verbose .. 4 fatal. Warnings (2) about unused initializers and shape merges only frighten users, and whatever is an
# error (3) comes as an exception, too.
_LOG_NOTHING_TWICE = 4
# What TensorRT has to be allowed -> the number type that a graph then may hold.
_TENSORRT_SWITCHES = {
    "trt_int8_enable": onnx.TensorProto.INT8,
    "trt_fp16_enable": onnx.TensorProto.FLOAT16,
    "trt_bf16_enable": onnx.TensorProto.BFLOAT16,
}


class OnnxRuntime(GraphRuntime):
    """An ONNX Runtime session on the CPU.

    Its fusions turn QDQ convolutions into integer ones only under narrow conditions (a quantizer right behind each
    convolution); elsewhere it computes the same values in float. `optimize=False` switches every fusion off.
    """

    name: ClassVar[str] = "onnxruntime"
    provider: ClassVar[str] = "CPUExecutionProvider"
    speed_note: str = (
        "ONNX Runtime runs a quantized convolution as int8 only where a quantizer follows it at once, and the others "
        "in float: it is for checking; OpenVINO is fast on a CPU, TensorRT on a GPU"
    )

    def __init__(self, session: Any, graph: onnx.ModelProto, options: RuntimeOptions) -> None:
        import onnxruntime as ort

        super().__init__(graph)
        self.version = ort.__version__
        self._session: Any = session
        self._options = options
        self._threads = options.threads or physical_cpus()
        self.device = "CUDA device 0" if self.on_gpu else describe_cpu(self._threads)

    @classmethod
    def _load(cls, model: bytes, graph: onnx.ModelProto, options: RuntimeOptions, label: str) -> Self:
        if options.precision != "fp32":
            raise UsageError(
                f"--precision {options.precision} with --runtime {cls.name}",
                why="ONNX Runtime takes its precision from the graph",
                fix="leave --precision out, or use --runtime openvino",
            )
        given = for_onnxruntime(model, graph) if options.optimize else Unsaturated(model)
        session = cls._session_of(given, options, cls._provider_options(graph), label)
        opened = cls(session, graph, options)
        if not cls.on_gpu:
            opened.speed_note = given.speed_note or cls.speed_note
        return opened

    @classmethod
    def _provider_options(cls, graph: onnx.ModelProto) -> dict[str, str]:
        """What the execution provider has to be told about a graph."""
        return {}

    @classmethod
    def _session_of(
        cls, given: Unsaturated, options: RuntimeOptions, provider_options: Mapping[str, str], label: str
    ) -> Any:
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingError("onnxruntime is not installed", fix=install_extra("cpu"))
        import onnxruntime as ort

        if cls.on_gpu and hasattr(ort, "preload_dlls"):
            # CUDA and cuDNN from pip packages lie where the loader does not look.
            ort.preload_dlls()
        if cls.provider not in ort.get_available_providers():
            raise MissingError(
                f"this onnxruntime has no {cls.provider}",
                why=f"it offers {', '.join(ort.get_available_providers())}",
                fix=f"pip uninstall onnxruntime && {install_extra('gpu')}",
            )
        settings = ort.SessionOptions()
        settings.log_severity_level = _LOG_NOTHING_TWICE
        settings.intra_op_num_threads = options.threads or physical_cpus()
        if options.optimize:
            # ALL, not EXTENDED: only ALL changes the layout to NCHWc, without which float convs take 1.5 times as long.
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        else:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        for entry in given.settings.items():
            settings.add_session_config_entry(*entry)
        try:
            session = ort.InferenceSession(given.model, settings, providers=[(cls.provider, dict(provider_options))])
        except Exception as error:  # its exception types share no base but Exception
            raise InputError(f"ONNX Runtime cannot load {label}", why=_first_line(error)) from error
        if cls.provider not in session.get_providers():
            # It falls back to the CPU with a mere log line when CUDA's libraries do not load.
            raise MissingError(
                f"ONNX Runtime could not start its {cls.provider}", fix="check the CUDA and cuDNN libraries it needs"
            )
        return session

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [info.name for info in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise self._cannot_run(feeds, "ONNX Runtime", _first_line(error)) from error

    def describe(self) -> dict[str, Any]:
        """As every runtime, and the execution provider, threads and whether fusions are on."""
        own = {"provider": self.provider, "threads": self._threads, "optimized": self._options.optimize}
        return super().describe() | own

    def _release(self) -> None:
        self._session = None


class OnnxRuntimeCuda(OnnxRuntime):
    """An ONNX Runtime session on an NVIDIA GPU. It computes QDQ graphs in float: for checking, not for int8 speed."""

    name: ClassVar[str] = "onnxruntime_cuda"
    on_gpu: ClassVar[bool] = True
    provider: ClassVar[str] = "CUDAExecutionProvider"

    @classmethod
    def _provider_options(cls, graph: onnx.ModelProto) -> dict[str, str]:
        """Float32 as float32: by default it rounds operands to TF32, eleven bits, and codes times a scale need more."""
        return {"use_tf32": "0"}


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """ONNX Runtime handing the graph to TensorRT, which builds an engine when the model is first run at a shape."""

    name: ClassVar[str] = "onnxruntime_tensorrt"
    provider: ClassVar[str] = "TensorrtExecutionProvider"
    speed_note: str = ""

    @classmethod
    def _provider_options(cls, graph: onnx.ModelProto) -> dict[str, str]:
        """It builds weakly typed networks, which refuse a graph of types that were not allowed (NVIDIA/TensorRT#3277).

        The scales of the graph make a calibration table needless. Float32 layers of a graph with float16 in it may be
        computed in float16, too.
        """
        found = _number_types(graph.graph)
        return {switch: "1" for switch, kind in _TENSORRT_SWITCHES.items() if kind in found}


class OnnxRuntimeRtx(OnnxRuntimeCuda):
    """ONNX Runtime handing the graph to TensorRT for RTX, whose networks take their precision from the graph."""

    name: ClassVar[str] = "onnxruntime_rtx"
    provider: ClassVar[str] = "NvTensorRTRTXExecutionProvider"
    speed_note: str = ""

    @classmethod
    def _provider_options(cls, graph: onnx.ModelProto) -> dict[str, str]:
        """None: `use_tf32` is an option of CUDA's own provider."""
        return {}


def _number_types(graph: onnx.GraphProto) -> set[int]:
    """Types of the numbers a graph computes with, as members of `onnx.TensorProto.DataType`."""
    declared = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    casts = [attribute for node in graph.node if node.op_type == "Cast" for attribute in node.attribute]
    return (
        declared
        | {tensor.data_type for tensor in graph.initializer}
        | {attribute.i for attribute in casts if attribute.name == "to"}
    )


def _first_line(error: BaseException) -> str:
    """The informative first line of a runtime's exception, without its boilerplate prefix."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("[ONNXRuntimeError] : ") if lines else type(error).__name__
