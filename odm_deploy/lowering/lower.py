"""`lower`: a quantized model in, an ONNX model for a runtime out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from odm_deploy.bundle import Target
from odm_deploy.bundle.image_format import ChannelOrder, Layout
from odm_deploy.errors import InputError, UsageError
from odm_deploy.lowering.dialects import cpu, tensorrt
from odm_deploy.lowering.half_precision import convert_rest_to_half
from odm_deploy.lowering.image_edges import add_uint8_io
from odm_deploy.lowering.markers import export_marked
from odm_deploy.lowering.metadata import mark_exact
from odm_deploy.lowering.tracing import TRACE_PARTS, network_name
from odm_deploy.progress import Track, steps, untracked
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.version import __version__

Precision = Literal["fp32", "fp16", "bf16"]
ImageType = Literal["float32", "uint8"]


_DIALECTS = {"tensorrt": tensorrt.lower_markers, "cpu": cpu.lower_markers}
_LONGEST = 300
_WAY_PART = 5
_HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class LoweringOptions:
    """How to write a model down; the defaults are what every runtime takes."""

    precision: Precision = "fp32"
    """Precision of what is not quantized."""
    io: ImageType = "float32"
    """Type of the input and output image, both 0..255."""
    layout: Layout = "nchw"
    """Order of the image axes; `nhwc` only with uint8."""
    order: ChannelOrder = "rgb"
    """Order of the image channels; `bgr` only with uint8."""
    target: Target = "tensorrt"
    """Whose dialect to write: every runtime takes that of TensorRT, OpenVINO and ONNX Runtime are faster on `cpu`."""

    def __post_init__(self) -> None:
        if self.io != "uint8" and (self.layout, self.order) != ("nchw", "rgb"):
            raise UsageError(
                f"--layout {self.layout} --order {self.order} with --io {self.io}",
                why="float images are NCHW and RGB",
                fix="add --io uint8",
            )
        if self.target == "cpu" and self.precision != "fp32":
            raise UsageError(
                f"--target cpu with --precision {self.precision}",
                why="runtimes on CPUs take half precision from their own settings",
                fix="leave --precision out",
            )


def lower(model: QuantizedModel, options: LoweringOptions | None = None) -> onnx.ModelProto:
    """The ONNX model of a quantized model; equal inputs give equal bytes.

    Raises:
        InputError: the network holds something that cannot be exported or lowered exactly.
        UsageError: a model that is exact or has gates, in half precision.
    """
    return lower_each(model, [options or LoweringOptions()])[0]


def lower_each(
    model: QuantizedModel,
    ways: Sequence[LoweringOptions],
    *,
    track: Track = untracked,
    stage: str = "lowering to ONNX",
) -> list[onnx.ModelProto]:
    """`lower` in several ways; the network, which is what takes time, is traced once. Raises as it does.

    `track` shows progress, which takes minutes for large networks, as that of a `stage`.
    """
    for options in ways:
        if model.exact is not None and options.precision != "fp32":
            raise UsageError(
                f"--precision {options.precision} of an exact model",
                why="its sums need float32's 24 bits, half precision has 11",
                fix="leave --precision out, or calibrate with --profile paper",
            )
        gated = [name for name, layer in model.layers.items() if layer.gate is not None]
        if gated and options.precision != "fp32":
            raise UsageError(
                f"--precision {options.precision} of a model with gates",
                why=f"the range of {gated[0]} is computed from each image, and half precision moves its codes",
                fix="leave --precision out",
            )
    lowered: list[onnx.ModelProto] = []
    with steps(track, (*TRACE_PARTS, *(_WAY_PART for _ in ways)), stage) as begin:
        marked = export_marked(model, begin)
        copies = [marked, *(ir.from_proto(ir.to_proto(marked)) for _ in ways[1:])]
        for graph, options in zip(copies, ways, strict=True):
            begin()
            lowered.append(_lower_marked(graph, model, options))
    return lowered


def _lower_marked(graph: ir.Model, model: QuantizedModel, options: LoweringOptions) -> onnx.ModelProto:
    _DIALECTS[options.target](graph)
    if options.precision != "fp32":
        convert_rest_to_half(graph, _HALF_TYPES[options.precision])
    if options.io == "uint8":
        add_uint8_io(graph, options.layout, options.order)
    if model.exact is not None:
        mark_exact(graph.metadata_props)
    graph.graph.name = model.network.name
    graph.producer_name, graph.producer_version = "odm-deploy", __version__
    proto = ir.to_proto(graph)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        if not model.network.is_foreign:
            raise
        raise InputError(
            f"cannot export {network_name(model)}",
            why=f"ONNX does not allow what its code computes: {error}"[:_LONGEST],
            fix="let its code compute in float32, without casts and autocast",
        ) from error
    return proto
