"""Per layer: how often a runtime's codes differ from the reference's when both start from the same values.

This is the statistically solid half of the proof. End to end, a handful of rounding ties decides how much of an image
differs; here every code of every layer is an experiment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.imaging.pixels import round_to_uint8
from odm_deploy.proof.teacher_forcing import codes_from, feeds_for, force_by_teacher
from odm_deploy.proof.ties import PIXELS, TIE_STEPS, count_ties, steps_to_code
from odm_deploy.quantization.exact.freeze import is_exact
from odm_deploy.quantization.fake_quant import grid_codes
from odm_deploy.quantization.model import QuantizedModel, tapped
from odm_deploy.runtimes.base import Runtime

FloatArray = NDArray[np.floating[Any]]

OUTPUT = "output"
"""Name under which the 8-bit image itself is compared, as the last "layer"."""

MAX_TIE_RATE = 1e-4
"""Share of codes off ties that may flip in a layer that computes the right thing. On EDSR-baseline x4, ONNX Runtime and
OpenVINO stay below 3e-5 in every layer."""
MAX_FLIP_STEPS = 0.01
"""Distance from a tie, in steps, beyond which rounding explains not even a single flip: errors that move values so far
would flip fifty times as many codes as `MAX_TIE_RATE` allows."""
FEW_TIES = 3
"""Flips that prove nothing, however few codes were compared."""
FLOOR_FACTOR = 10.0
"""How many times the reference's own flips are allowed, for layers behind much float arithmetic."""


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
    tie_flips: int = 0
    """Flipped codes whose value lies on a rounding tie, within `TIE_STEPS`, between the two codes."""
    ties: int = 0
    """Values that lie exactly between two codes."""
    furthest_steps: float = 0.0
    """How far any flipped value lies from where the code it got begins, in steps of the layer's grid."""
    exact: bool = False
    """Whether the model's arithmetic never rounds, so that no tie excuses a flip."""

    @property
    def flip_rate(self) -> float:
        """Share of differing codes."""
        return self.flips / self.codes if self.codes else 0.0

    @property
    def tie_flip_rate(self) -> float:
        """Share of codes that differ on a rounding tie."""
        return self.tie_flips / self.codes if self.codes else 0.0

    @property
    def floor_flip_rate(self) -> float:
        """Share of codes that rounding alone flips."""
        return self.floor_flips / self.codes if self.codes else 0.0

    @property
    def is_clean(self) -> bool:
        """Whether rounding explains the flips: to the neighbouring code, near a tie, and on it or rare."""
        if self.exact:
            return self.flips == 0
        if self.max_step > 1 or self.furthest_steps > MAX_FLIP_STEPS:
            return False
        allowed = self.codes * max(MAX_TIE_RATE, FLOOR_FACTOR * self.floor_flip_rate)
        return self.flips - self.tie_flips <= max(allowed, FEW_TIES)

    def add(
        self,
        found: NDArray[np.integer],
        expected: NDArray[np.integer],
        floor: NDArray[np.integer],
        values: FloatArray,
        grid: Grid,
    ) -> None:
        """Count one image's codes, all of one shape.

        Args:
            found: the runtime's.
            expected: the reference's.
            floor: the reference's in float64.
            values: what the reference's quantizer was given, float32.
            grid: the grid of that quantizer.

        Raises:
            InputError: the runtime's codes have another shape than the reference's.
        """
        if found.shape != expected.shape:
            raise InputError(
                f"the codes of {self.name} cannot be compared",
                why=f"their shape is {found.shape}, the reference's {expected.shape}",
            )
        difference = np.abs(found.astype(np.int16) - expected.astype(np.int16))
        flipped = difference > 0
        distances = steps_to_code(values[flipped], found[flipped].astype(np.int16), grid)
        self.codes += difference.size
        self.flips += int(flipped.sum())
        self.tie_flips += int((distances <= TIE_STEPS).sum())
        self.ties += count_ties(values, grid)
        self.furthest_steps = max(self.furthest_steps, float(distances.max(initial=0.0)))
        self.max_step = max(self.max_step, int(difference.max(initial=0)))
        self.floor_flips += int((floor != expected).sum())


@dataclass
class _Trace:
    """What the reference computed at every quantizer, and the image it ended with."""

    image: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))
    """[1, 3, scale*H, scale*W], float64 for a float64 reference."""
    sources: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    codes: dict[str, NDArray[np.uint8]] = field(default_factory=dict[str, "NDArray[np.uint8]"])


def compare_layers(
    model: QuantizedModel,
    lowered: onnx.ModelProto,
    open_bytes: Callable[[bytes], Runtime],
    images: Iterable[FloatArray],
) -> list[LayerParity]:
    """Teacher-forced flip rates of every quantized layer, and of the 8-bit output behind the last one.

    Args:
        model: the reference.
        lowered: the graph under test.
        open_bytes: opens a serialized graph on the runtime under test.
        images: float32 [1, 3, H, W] in 0..255; a few small ones say as much as many large ones.

    Raises:
        InputError: a graph without taps, or one of another model, whose codes have other shapes.
    """
    forced = force_by_teacher(lowered)
    exact = is_exact(model)
    result = {name: LayerParity(name, exact=exact) for name in (*(tap.layer for tap in forced.taps), OUTPUT)}
    double = model.double()
    with open_bytes(forced.model.SerializeToString()) as runtime:
        image_input = next(info for info in runtime.inputs if not info.name.endswith(".given"))
        image_output = next(info for info in runtime.outputs if info.name == lowered.graph.output[0].name)
        for image in images:
            trace = _trace(model, image)
            floor = _trace_forced(double, image, trace)
            sources = {name: source.numpy() for name, source in trace.sources.items()}
            outputs = runtime.run(
                {image_input.name: image_input.from_rgb(image), **feeds_for(forced, sources, trace.codes)}
            )
            for tap in forced.taps:
                name, found = tap.layer, codes_from(tap, outputs[tap.codes])
                grid = model.layers[name].grid
                result[name].add(found, trace.codes[name], floor.codes[name], sources[name], grid)
            picture = round_to_uint8(image_output.to_rgb(outputs[image_output.name]))
            result[OUTPUT].add(picture, round_to_uint8(trace.image), round_to_uint8(floor.image), trace.image, PIXELS)
    return list(result.values())


@dataclass(frozen=True)
class Rounding:
    """How a runtime rounds, as noise for the reference; the defaults are one unit in the last place."""

    noise_steps: float = 0.0
    """How far a value may move, in steps of its layer's grid, where that is more than one unit in its last place."""
    tie_share: float = 1.0
    """Share of the values exactly between two codes that move."""


def rounding_of(layers: Iterable[LayerParity], least_steps: float = 0.0) -> Rounding:
    """How far rounding may move what a quantizer is given, judged by a runtime's layers.

    By what flips as large a share of the codes as flipped: a value moved by u steps crosses a tie with probability |u|,
    and noise spread evenly over [-a, a] moves values by a / 2 on average, so a is twice the share. Beyond
    `MAX_TIE_RATE` flips are no rounding any more. Exactly on ties any noise flips every other value, and runtimes flip
    fewer: as many move as flip what flipped there, and `FEW_TIES` more.

    Args:
        layers: what was counted; without any, nothing is known of the runtime.
        least_steps: how far the runtime is known to round, `Runtime.rounding_steps`.
    """
    quantizers = [layer for layer in layers if layer.name != OUTPUT]
    codes = sum(layer.codes for layer in quantizers)
    if not codes:
        return Rounding()
    rate = min(sum(layer.flips for layer in quantizers) / codes, MAX_TIE_RATE)
    ties = sum(layer.ties for layer in quantizers)
    on_ties = sum(layer.tie_flips for layer in quantizers)
    tie_share = min(1.0, 2.0 * (on_ties + FEW_TIES) / ties) if ties else 1.0
    return Rounding(max(least_steps, 2.0 * rate), tie_share)


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

    trace.image = _run_tapped(model, torch.from_numpy(image), watch).numpy()
    return trace


@torch.no_grad()
def _trace_forced(double: QuantizedModel, image: FloatArray, given: _Trace) -> _Trace:
    """What the float64 reference computes when each quantizer hands on what float32 computed."""
    trace = _Trace()

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def tap(x: Tensor) -> Tensor:
            trace.codes[name] = grid_codes(x, double.layers[name].grid).numpy()
            return given.sources[name].to(x.dtype)

        return tap

    trace.image = _run_tapped(double, torch.from_numpy(image).double(), watch).numpy()
    return trace


def _run_tapped(model: QuantizedModel, image: Tensor, watch: Callable[[str], Callable[[Tensor], Tensor]]) -> Tensor:
    """Run a model with a tap at each quantizer."""
    with tapped(model, watch):
        return model(image)
