"""What an engine really consists of: its layers, their number types, and the ONNX nodes each one computes.

TensorRT falls back from int8 to float without a warning. The evidence is in one of two places, and both are read here:

* `parse_log`: the `Layers:` table that TensorRT-RTX writes to its VERBOSE log while building (profiling verbosity
  DETAILED). It needs no GPU.
* `parse_inspector`: the JSON of `EngineInspector`, for TensorRT 10 and 11, where a GPU can load the plan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odm_deploy.errors import InputError

# How number types are spelled in logs and inspector JSON, also inside format descriptions such as
# "Thirty-two wide channel vectorized row major Int8 format". The widest come first.
_TYPES = {
    "fp32": r"fp32|float32|float",
    "bf16": r"bf16|bfloat16",
    "fp16": r"fp16|half|float16",
    "fp8": r"fp8|float8\w*",
    **{name: name for name in ("fp4", "int64", "int32", "uint8", "int8", "int4", "bool")},
}

# Layer types that multiply and accumulate; everything else moves or transforms values point by point.
# Generated kernels (`kgen`, `runtime_fusion`) say in their name what they fuse: `__myl_CastMulCastMulCastFc_myl0_1`.
_GENERATED = ("kgen", "runtime_fusion")
_FUSED_PRODUCT = re.compile(r"Fc|Dot|Conv|Gemm")
_COMPUTE = re.compile(
    r"conv|correlation|gemm|matmul|matrix_?multiply|fullyconnected|\bdot\b|attention|mha", re.IGNORECASE
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*[\x1e,;]?\s*(?:\[|$))")
_LOG_ROW = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?"
    r"Outputs: \[.*?\], (?P<rest>(?:TacticName|StreamId|Metadata): .*)$"
)
_LOG_TYPE = re.compile(
    r"\{ Name: .*?, .*?Dimensions: \[[^\]]*\].*?(?:Datatype|Format/Datatype): ([^,}]*?)(?:, Format: [^}]*?)? \}"
)


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a built engine."""

    name: str
    kind: str
    """The runtime's own layer type, for example `correlation`, `gemm`, `kgen`, `CaskConvolution`."""
    precision: str
    """Type of the arithmetic: `int8` only where both operands of the multiplication are int8."""
    onnx_nodes: tuple[str, ...]
    """Names of the ONNX nodes this layer computes, wholly or in part."""

    @property
    def is_compute(self) -> bool:
        """Whether it multiplies and accumulates (convolution, matrix product)."""
        return _is_compute(self.kind, self.name)


def parse_log(lines: Iterable[str]) -> list[LayerRecord]:
    """Read the last `Layers:` table in a VERBOSE build log.

    Args:
        lines: the log, with or without severity prefixes.

    Returns:
        One record a row, in execution order; empty when the log holds no table.
    """
    records: list[LayerRecord] = []
    in_table = False
    for line in lines:
        if line.rstrip().endswith("Layers:"):
            records, in_table = [], True
        elif in_table:
            match = _LOG_ROW.match(line.strip())
            if match is not None:
                records.append(_log_record(match))
            elif not line.lstrip().startswith("Name: "):
                # Rows of another shape (copies of sizes to the device) belong to the table but compute nothing.
                in_table = False
    return records


def parse_inspector(text: str) -> list[LayerRecord]:
    """Read the JSON of `IEngineInspector.get_engine_information` (TensorRT 10 and 11).

    Engines built without detailed profiling verbosity list bare layer names; their precision is then `unknown`.

    Raises:
        InputError: it is not that JSON.
    """
    try:
        document: Any = json.loads(text)
        layers = document["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("cannot read the engine inspector's output", why=str(error)) from error
    return [_inspector_record(layer) for layer in layers]


def recorded_layers(engine: Mapping[str, Any]) -> list[LayerRecord]:
    """The layers that a manifest's `engine` entry lists; empty where it lists none."""
    rows = engine.get("layers", ())
    return [LayerRecord(row["name"], row["kind"], row["precision"], tuple(row["onnx_nodes"])) for row in rows]


def find_compute_layer(layers: Sequence[LayerRecord], onnx_node: str) -> LayerRecord | None:
    """The layer that does the multiplications of `onnx_node`.

    A node's bias or rescaling often ends up in another layer, so compute layers win over pointwise ones.
    """
    covering = [layer for layer in layers if onnx_node in layer.onnx_nodes]
    return next((layer for layer in covering if layer.is_compute), covering[0] if covering else None)


def normalize_type(text: str) -> str:
    """`Float` -> `fp32`, `Row major linear FP16 format (kLINEAR)` -> `fp16`, ..., `unknown` for anything else."""
    for name, pattern in _TYPES.items():
        if re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", text, re.IGNORECASE):
            return name
    return "unknown"


def _is_compute(kind: str, name: str) -> bool:
    if kind in _GENERATED:
        return _FUSED_PRODUCT.search(name) is not None
    return _COMPUTE.search(kind) is not None


def _log_record(match: re.Match[str]) -> LayerRecord:
    name, kind = match["name"], match["kind"]
    inputs, constants = (
        [*map(normalize_type, _LOG_TYPE.findall(match[side] or ""))] for side in ("inputs", "constants")
    )
    metadata = match["rest"].partition("Metadata: ")[2]
    return LayerRecord(name, kind, _precision(kind, name, inputs, constants), _onnx_nodes(metadata))


def _inspector_record(layer: str | Mapping[str, Any]) -> LayerRecord:
    if isinstance(layer, str):
        return LayerRecord(layer, "", "unknown", ())
    name = str(layer.get("Name") or "")
    kind = str(layer.get("ParameterType") or layer.get("LayerType") or "")
    inputs, constants = ([*map(_inspector_type, layer.get(side) or ())] for side in ("Inputs", "Constants"))
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        # Classic convolution layers list their weights apart.
        constants.append(normalize_type(str(weights["Type"])))
    nodes = _onnx_nodes(str(layer.get("Metadata") or ""))
    return LayerRecord(name, kind, _precision(kind, name, inputs, constants), nodes)


def _inspector_type(tensor: Mapping[str, Any]) -> str:
    return normalize_type(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or tensor.get("Format") or ""))


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_ONNX_NODE.findall(metadata)))


def _precision(kind: str, name: str, inputs: Sequence[str], constants: Sequence[str]) -> str:
    """The type a layer computes in, from those of its operands.

    A product runs as int8 only when two of its operands are int8: an int8 input alone is dequantized on the fly.
    Residuals, biases and scales are further, float, operands of the same layer and do not count against it. Products
    inside generated kernels never count as int8: every one seen casts its int8 operands to float first.
    """
    types = [*inputs, *constants]
    if _is_compute(kind, name):
        if kind in _GENERATED:
            types = [dtype for dtype in types if dtype != "int8"] or ["fp32"]
        elif types.count("int8") >= 2:
            return "int8"
        else:
            types = [dtype for dtype in types if dtype != "int8"] or types
    elif inputs:
        types = [*inputs]
    return next((dtype for dtype in _TYPES if dtype in types), "unknown" if types else "none")
