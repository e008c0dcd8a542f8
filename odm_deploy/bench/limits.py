"""Why int8 is not faster: what is left in float, what stands between the convolutions, what channels are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnx import ModelProto

from odm_deploy.building.coverage import Coverage, coverage, infer_shapes
from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.building.padded import padded_before
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.lint.graph import QdqGraph
from odm_deploy.lowering.lint.operands import find_layers
from odm_deploy.progress import counted

CHANNEL_BLOCK = 32
"""Channels that int8 tensor cores and AVX512-VNNI or AMX kernels take at a time; fewer are padded with zeros."""

_NO_WORK = {"allocate", "deallocate", "shape_call"}
_WORTH_SAYING = 0.05


@dataclass(frozen=True)
class LayerLimit:
    """Why one layer gains less than int8 could give."""

    name: str
    """Name of the ONNX node."""
    runs_as: str
    """`int8`, `fp16`, ...; `unknown` where the runtime does not tell."""
    mac_share: float
    """Its part of all multiply-accumulates."""
    reason: str


@dataclass(frozen=True)
class Limits:
    """What keeps a quantized network from being faster than its float twin, on one input shape."""

    int8_mac_share: float
    """Part of all multiply-accumulates that run as int8; where the engine is not known, that the graph quantizes."""
    padding_share: float
    """Part of the multiply-accumulates in quantized convolutions that is done on padded channels."""
    compute_kernels: int
    other_kernels: int
    """Engine layers that multiply, and those that only move, scale or round; 0 both where no engine is known."""
    fallbacks: tuple[str, ...]
    """Layers that the graph quantizes and the engine runs in float."""
    padded_before: int = 0
    """Convolutions on grids whose zero is not the middle code: engines pad their input by kernels of their own."""
    layers: tuple[LayerLimit, ...] = ()
    """Every layer with a limit of its own, the one with the most multiply-accumulates first."""

    @property
    def best_speedup(self) -> float:
        """Speed-up if int8 work took no time at all (Amdahl's law over multiply-accumulates); infinite without rest."""
        rest = 1 - self.int8_mac_share
        return 1 / rest if rest > 0 else float("inf")

    def sentences(self) -> tuple[str, ...]:
        """The limits worth knowing, the weightiest first, one clause each."""
        said: list[str] = []
        if self.fallbacks:
            some = ", ".join(self.fallbacks[:3]) + (" ..." if len(self.fallbacks) > 3 else "")
            verb = "runs" if len(self.fallbacks) == 1 else "run"
            layers = counted(len(self.fallbacks), "quantized layer")
            said.append(f"{layers} {verb} in float ({some}): see odm-deploy inspect")
        if 1 - self.int8_mac_share > _WORTH_SAYING:
            said.append(
                f"{1 - self.int8_mac_share:.0%} of the multiply-accumulates are in float layers, so even int8 layers "
                f"that took no time would give {self.best_speedup:.2g}x; quantize --most-float 0 and --profile integer "
                "leave fewer"
            )
        if self.other_kernels:
            s = "s" if self.other_kernels == 1 else ""
            others = counted(self.other_kernels, "kernel")
            computing = counted(self.compute_kernels, "convolution") + " and products"
            said.append(
                f"{others} beside {computing} only scale{s}, "
                f"round{s} and move{s} feature maps; half precision for the rest (--precision fp16) halves that"
            )
        if self.compute_kernels and self.padded_before:
            have = "has its" if self.padded_before == 1 else "have their"
            padded = f"{counted(self.padded_before, 'convolution')} {have}"
            said.append(
                f"{padded} input padded and shifted by kernels before, because "
                "zero is not the middle code of their grid: quantize with --profile engine, or --symmetric"
            )
        if self.padding_share > _WORTH_SAYING:
            said.append(
                f"{self.padding_share:.0%} of the int8 multiply-accumulates are on channels padded to multiples of "
                f"{CHANNEL_BLOCK}"
            )
        return tuple(said)


def find_limits(model: ModelProto, layers: Sequence[LayerRecord], shape: tuple[int, int, int, int]) -> Limits:
    """Find what limits a quantized network on inputs [N, 3, H, W] of one shape.

    `layers` are those of the engine built from the graph; empty where the runtime does not tell.

    Raises:
        InputError: the graph cannot be read.
    """
    sizes = InputShapes(shape, shape, shape)
    found = coverage(model, layers, sizes)
    known = bool(layers)
    fast = found.int8_macs if known else found.quantized_macs
    padding = _padding_factors(model, found, sizes)
    macs = {layer.name: layer.macs or 0 for layer in found.layers if layer.name in padding}
    useful, padded = sum(macs.values()), sum(macs[name] * padding[name] for name in macs)
    working = [layer for layer in layers if layer.kind not in _NO_WORK]
    compute = sum(layer.is_compute for layer in working)
    return Limits(
        int8_mac_share=fast / found.macs if found.macs else 0.0,
        padding_share=1 - useful / padded if padded else 0.0,
        compute_kernels=compute,
        other_kernels=len(working) - compute,
        fallbacks=tuple(layer.name for layer in found.fallbacks) if known and found.fallbacks_matter else (),
        padded_before=padded_before(model),
        layers=tuple(_layer_limits(found, padding, known=known)),
    )


def _layer_limits(found: Coverage, padding: dict[str, float], *, known: bool) -> list[LayerLimit]:
    limits: list[LayerLimit] = []
    for layer in sorted(found.layers, key=lambda layer: -(layer.macs or 0)):
        padded = 1 - 1 / padding.get(layer.name, 1.0)
        reason = ""
        if not layer.quantized or (known and layer.precision != "int8"):
            reason = layer.reason
        elif padded > _WORTH_SAYING:
            reason = f"{padded:.0%} of what it computes is on channels padded to multiples of {CHANNEL_BLOCK}"
        if reason:
            share = (layer.macs or 0) / found.macs if found.macs else 0.0
            limits.append(LayerLimit(layer.name, layer.precision if known else "unknown", share, reason))
    return limits


def _padding_factors(model: ModelProto, found: Coverage, sizes: InputShapes) -> dict[str, float]:
    """How many times its own work each quantized convolution does once its channels are padded."""
    graph = QdqGraph(model)
    shapes = infer_shapes(graph.model, sizes)
    quantized = {layer.name for layer in found.layers if layer.quantized}
    weights = {
        layer.name: shapes.get(layer.node.input[1])
        for layer in find_layers(graph)
        if layer.name in quantized and layer.node.op_type == "Conv"
    }

    def padding(channels: int) -> float:
        return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK / channels

    return {name: prod(map(padding, shape[:2])) for name, shape in weights.items() if shape}
