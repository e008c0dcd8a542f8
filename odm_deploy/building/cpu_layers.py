"""What runtimes on CPUs make of a graph: each convolution and matrix product with the arithmetic it gets.

ONNX Runtime tells by the graph that it saves after optimization: a product in integers is a node of another type there
(QLinearConv, ...). OpenVINO tells by the model it executes. Both are compiled for it, and thrown away.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.unsaturated import Unsaturated, for_onnxruntime, for_openvino
from odm_deploy.machine.openvino_package import import_openvino

CPU_RUNTIMES = ("onnxruntime", "openvino")

# Of fused convolutions, which keep the name of the node they came from and may get a number.
_RENAMED = "_token_"
_SATURATES = "its 8-bit products may saturate on this CPU without VNNI: quantize with --any-cpu"
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


@dataclass(frozen=True)
class CpuLayers:
    """The layers that a runtime makes of a graph."""

    records: list[LayerRecord]
    source: str
    """Whose word that is, and what it makes of this CPU."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of the graph's nodes -> why the runtime does not multiply them in integers, where that is known."""


def cpu_layers(runtime: str, model: bytes, graph: onnx.ModelProto, sizes: InputShapes) -> CpuLayers:
    """The layers that a runtime makes of a graph.

    Args:
        runtime: a name in `CPU_RUNTIMES`; `-` and `_` are the same.
        model: the graph, serialized.
        graph: the same, parsed.
        sizes: OpenVINO compiles for its `opt` shape.

    Raises:
        UsageError: another runtime.
        MissingError: it is not installed.
        InputError: it refuses the graph.
    """
    if runtime not in CPU_RUNTIMES:
        raise UsageError(f"--runtime {runtime}", fix=f"use {', '.join(CPU_RUNTIMES)}; for TensorRT leave it out")
    if importlib.util.find_spec(runtime) is None:
        raise MissingError(f"{runtime} is not installed", fix=f"pip install {runtime}")
    try:
        return _of_onnxruntime(model, graph) if runtime == "onnxruntime" else _of_openvino(model, graph, sizes)
    except (MissingError, UsageError):
        raise
    except Exception as error:  # neither runtime's exceptions share a base but Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{runtime} cannot load the graph", why=lines[0]) from error


def _of_onnxruntime(model: bytes, graph: onnx.ModelProto) -> CpuLayers:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        settings = ort.SessionOptions()
        # It would print the names of a stranger's nodes as they are; what matters is raised.
        settings.log_severity_level = 4
        settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        given = for_onnxruntime(model, graph)
        for entry in given.settings.items():
            settings.add_session_config_entry(*entry)
        ort.InferenceSession(given.model, settings, providers=["CPUExecutionProvider"])
        optimized = onnx.load(settings.optimized_model_filepath)
    # Convolutions whose channels it blocks go by the name of their result.
    names = _names(graph)
    records: list[LayerRecord] = []
    for node in optimized.graph.node:
        if node.op_type in _INTEGER | _FLOAT:
            name = _plain_name(node.name)
            precision = "int8" if node.op_type in _INTEGER else "fp32"
            records.append(LayerRecord(node.name, node.op_type, precision, (names.get(name, name),)))
    return CpuLayers(records, _word(f"onnxruntime {ort.__version__}, its graph after optimization", given))


def _names(graph: onnx.ModelProto) -> dict[str, str]:
    """Names of nodes and of their results -> the node's."""
    nodes = graph.graph.node
    return {node.output[0]: node.name for node in nodes} | {node.name: node.name for node in nodes}


def _scaled_by(graph: onnx.ModelProto) -> dict[str, str]:
    """Names of multiplications -> the convolution or product whose result alone they read, apart from constants."""
    producers = {name: node for node in graph.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in graph.graph.node:
        computed = [producers[name] for name in node.input if name in producers]
        if node.op_type == "Mul" and len(computed) == 1 and computed[0].op_type in _FLOAT:
            found[node.name] = computed[0].name
    return found


def _plain_name(name: str) -> str:
    return name.partition(_RENAMED)[0].removesuffix("_nchwc").removesuffix("_nhwc")


def _of_openvino(model: bytes, graph: onnx.ModelProto, sizes: InputShapes) -> CpuLayers:
    openvino = import_openvino()

    core = openvino.Core()
    given = for_openvino(model, graph)
    read = core.read_model(given.model)
    source = graph.graph.input[0]
    nhwc = source.type.tensor_type.shape.dim[-1].dim_value == 3
    n, c, h, w = sizes.opt
    read.reshape({source.name: [n, h, w, c] if nhwc else [n, c, h, w]})
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **given.settings})
    # OpenVINO calls an operator of an ONNX file by its name, or by that of its result.
    names, scaled = _names(graph), _scaled_by(graph)
    records: list[LayerRecord] = []
    for operator in compiled.get_runtime_model().get_ordered_ops():
        facts = operator.get_rt_info()
        kind, precision, sources = (
            _text(facts, key) for key in ("layerType", "runtimePrecision", "originalLayersNames")
        )
        nodes = tuple(dict.fromkeys(names[text] for text in sources.split(",") if text in names))
        spelled = "int8" if precision in ("i8", "u8") else {"f32": "fp32", "f16": "fp16"}.get(precision, precision)
        record = LayerRecord(operator.get_friendly_name(), kind, spelled, nodes)
        if record.is_compute:
            # Weights that it multiplies by a factor behind the layer lose the layer's name for the factor's.
            record = replace(record, onnx_nodes=(*nodes, *(scaled[node] for node in nodes if node in scaled)))
        records.append(record)
    source = f"openvino {openvino.__version__}, the model it executes"
    return CpuLayers(records, _word(source, given), dict.fromkeys(given.in_float, _SATURATES))


def _word(source: str, given: Unsaturated) -> str:
    """Whose word it is, and what this CPU made of the graph."""
    return "; ".join(filter(None, (source, given.speed_note)))


def _text(facts: Any, key: str) -> str:
    value = facts[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)
