"""Where an OpenVINO model's time goes, convolution by convolution, from its own counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from odm_deploy.machine.host import physical_cpus
from odm_deploy.machine.openvino_package import import_openvino

_RUNS = 5


@dataclass(frozen=True)
class Kernel:
    """One node that OpenVINO executes."""

    layer: str
    """The layer it computes, or the node's own name."""
    kind: str
    """What OpenVINO calls it: Convolution, Subgraph, Reorder, ..."""
    precision: str
    """Of its arithmetic: u8, i8, f32, bf16, ..."""
    ms: float
    """Mean duration of a run."""


def kernels(model: ModelProto, size: tuple[int, int]) -> list[Kernel]:
    """The executed nodes of a model at one size (height, width), slowest first."""
    openvino = import_openvino()

    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    read.reshape([1, 3, *size])
    settings = {
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": physical_cpus(),
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.float32)
    durations_us: dict[str, list[float]] = {}
    nodes: dict[str, Any] = {}
    for _ in range(_RUNS):
        request.infer([image])
        for node in request.get_profiling_info():
            durations_us.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e6)
            nodes[node.node_name] = node
    found = [
        Kernel(name, nodes[name].node_type, nodes[name].exec_type.rpartition("_")[2], float(np.median(times)) / 1e3)
        for name, times in durations_us.items()
    ]
    return sorted((kernel for kernel in found if kernel.ms), key=lambda kernel: -kernel.ms)


def against_roof(
    found: list[Kernel], macs: Mapping[str, int], peaks: Mapping[str, float | None]
) -> list[tuple[str, str, float, float]]:
    """Layers with their precision, milliseconds, and part of the peak they reach, slowest first.

    Args:
        found: a model's kernels.
        macs: multiply-adds of each layer, by name.
        peaks: of the machine, as `roofline.machine_peaks`.
    """
    rows: list[tuple[str, str, float, float]] = []
    for kernel in found:
        layer = next((name for name in macs if kernel.layer == name or kernel.layer.startswith(f"{name}/")), None)
        peak = peaks.get({"u8": "int8", "i8": "int8", "f32": "fp32", "bf16": "bf16"}.get(kernel.precision.lower(), ""))
        if layer is not None and macs[layer] and peak:
            rows.append((layer, kernel.precision, kernel.ms, macs[layer] / kernel.ms / 1e6 / peak))
    return rows
