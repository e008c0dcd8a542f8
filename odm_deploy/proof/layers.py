"""Per layer: how often a runtime's codes differ from the reference's when both start from the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.proof.teacher_forcing import codes_from, feeds_for, force_by_teacher
from odm_deploy.quantization.fake_quant import grid_codes
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import Runtime

FloatArray = NDArray[np.float32]


@dataclass
class LayerParity:
    """Flips of one layer's codes, teacher-forced, summed over images."""

    name: str
    codes: int = 0
    """Codes compared."""
    flips: int = 0
    """Codes that differ from the reference's."""
    max_step: int = 0
    """Largest difference between two codes."""
    floor_flips: int = 0
    """Codes of the reference that differ between its float32 and its float64 computation."""

    @property
    def flip_rate(self) -> float:
        """Share of differing codes."""
        return self.flips / self.codes if self.codes else 0.0

    @property
    def floor_flip_rate(self) -> float:
        """Share of codes that rounding alone flips."""
        return self.floor_flips / self.codes if self.codes else 0.0


@dataclass
class _Trace:
    """What the reference computed at every quantizer."""

    sources: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    codes: dict[str, NDArray[np.uint8]] = field(default_factory=dict[str, "NDArray[np.uint8]"])


def compare_layers(
    model: QuantizedModel,
    lowered: onnx.ModelProto,
    open_bytes: Callable[[bytes], Runtime],
    images: Iterable[FloatArray],
) -> list[LayerParity]:
    """Teacher-forced flip rates of every quantized layer.

    Args:
        model: the reference.
        lowered: the graph under test.
        open_bytes: opens a serialized graph on the runtime under test.
        images: float32 [1, 3, H, W] in 0..255; a few small ones say as much as many large ones.

    Raises:
        InputError: a graph without taps, or one of another model.
    """
    forced = force_by_teacher(lowered)
    result = {tap.layer: LayerParity(tap.layer) for tap in forced.taps}
    double = model.double()
    with open_bytes(forced.model.SerializeToString()) as runtime:
        image_input = next(info for info in runtime.inputs if not info.name.endswith(".given"))
        for image in images:
            trace = _trace(model, image)
            floor = _trace_forced(double, image, trace)
            sources = {name: source.numpy() for name, source in trace.sources.items()}
            picture = np.rint(image).astype(image_input.dtype) if image_input.dtype == np.uint8 else image
            if image_input.dtype == np.uint8 and image_input.shape[-1] == 3:
                picture = np.ascontiguousarray(picture.transpose(0, 2, 3, 1))
            outputs = runtime.run({image_input.name: picture, **feeds_for(forced, sources, trace.codes)})
            for tap in forced.taps:
                expected = trace.codes[tap.layer].astype(np.int16)
                difference = np.abs(codes_from(tap, outputs[tap.codes]) - expected)
                parity = result[tap.layer]
                parity.codes += difference.size
                parity.flips += int((difference > 0).sum())
                parity.max_step = max(parity.max_step, int(difference.max(initial=0)))
                parity.floor_flips += int((floor[tap.layer] != trace.codes[tap.layer]).sum())
    return list(result.values())


@torch.no_grad()
def _trace(model: QuantizedModel, image: FloatArray) -> _Trace:
    """Run the reference and keep what arrives at each quantizer, and its codes."""
    trace = _Trace()

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def tap(x: Tensor) -> Tensor:
            trace.sources[name] = x
            trace.codes[name] = grid_codes(x, model.layers[name].grid).numpy()
            return x

        return tap

    _run_tapped(model, torch.from_numpy(image), watch)
    return trace


@torch.no_grad()
def _trace_forced(double: QuantizedModel, image: FloatArray, trace: _Trace) -> dict[str, NDArray[np.uint8]]:
    """Codes the float64 reference computes when each quantizer hands on what float32 computed."""
    codes: dict[str, NDArray[np.uint8]] = {}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def tap(x: Tensor) -> Tensor:
            codes[name] = grid_codes(x, double.layers[name].grid).numpy()
            return trace.sources[name].to(x.dtype)

        return tap

    _run_tapped(double, torch.from_numpy(image).double(), watch)
    return codes


def _run_tapped(model: QuantizedModel, image: Tensor, watch: Callable[[str], Callable[[Tensor], Tensor]]) -> None:
    layers = model.layers
    try:
        for name, layer in layers.items():
            layer.tap = watch(name)
        model(image)
    finally:
        for layer in layers.values():
            layer.tap = None
