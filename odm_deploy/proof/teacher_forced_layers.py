"""Per layer: how often a runtime's codes differ from the reference's when both start from the same values, and how far
what goes on in float between the layers is from the reference's.

This is the statistically solid half of the proof. End to end, a handful of rounding ties decides how much of an image
differs; here every code of every layer is an experiment of its own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import FloatArray, Grid
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.imaging.pixels import round_to_uint8, to_batch
from odm_deploy.lowering.metadata import Tap, layer_of_run, run_name
from odm_deploy.progress import Track, untracked
from odm_deploy.proof.layer_parity import OUTPUT, PIXELS, LayerParity
from odm_deploy.proof.teacher_forcing import (
    all_codes_from,
    as_in_model,
    bordered,
    feeds_for,
    force_by_teacher,
    shuffled,
    unshuffled,
)
from odm_deploy.quantization.fake_quant import fake_quantize, grid_codes
from odm_deploy.quantization.model import QuantizedModel, tapped
from odm_deploy.runtimes.base import Runtime

LAYER_IMAGES, LAYER_CROP_PX = 4, 96
"""How many images the layers are compared on, and the side of their centers in pixels: a few small ones say as much as
many large ones."""

_MIXING = 16
"""Seed of the random order."""


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
    *,
    track: Track = untracked,
) -> list[LayerParity]:
    """Teacher-forced flip rates of every quantized layer, and of the 8-bit output behind the last one.

    The first image is taken twice, the second time with every quantizer's values in random order.

    Args:
        model: the reference.
        lowered: the graph under test.
        open_bytes: opens a serialized graph on the runtime under test.
        images: float32 [1, 3, H, W] in 0..255.
        track: shows progress over the images.

    Raises:
        InputError: a graph without the taps of all quantizers, or one of another model.
    """
    forced = force_by_teacher(lowered)
    exact, crops = model.exact is not None, list(images)
    # A quantizer that stands for several of the model is judged once.
    taps = [tap for tap in forced.taps if not tap.same_as]
    result = {name: LayerParity(name, exact=exact) for name in (*(tap.layer for tap in taps), OUTPUT)}
    double, grids, twins = model.double(), model.grids, dict[str, str]()
    with open_bytes(forced.model.SerializeToString()) as runtime:
        image_input = next(info for info in runtime.inputs if not info.name.endswith(".given"))
        image_output = next(info for info in runtime.outputs if info.name == lowered.graph.output[0].name)
        # Mixed right behind the plain one, whose trace is still there.
        taken = [*itertools.product(crops[:1], (False, True)), *((crop, False) for crop in crops[1:])]
        trace = _Trace()
        for image, mixing in track(taken, len(taken), "comparing the layers on images"):
            if mixing:
                teacher = _mixed(trace, forced.taps, grids)
                trace = _trace(model, torch.from_numpy(image), twins, teacher)
            else:
                trace = teacher = _trace(model, torch.from_numpy(image), twins)
                if not twins and len(trace.codes) > len(forced.taps):
                    twins = _twins(trace, forced.taps)
                    trace = teacher = _trace(model, torch.from_numpy(image), twins)
                _check_taps(forced.taps, trace)
            floor = _trace(double, torch.from_numpy(image).double(), twins, teacher)
            sources = {name: source.numpy() for name, source in trace.sources.items()}
            outputs = runtime.run(
                {image_input.name: image_input.images.from_rgb(image), **feeds_for(forced, sources, teacher.codes)}
            )
            for tap in taps:
                name, found = tap.layer, all_codes_from(tap, outputs[tap.codes])
                grid = grids[layer_of_run(name)]
                expected, in_double = (bordered(tap, each.codes[name], grid.zero_point) for each in (trace, floor))
                double_source = floor.sources[name].numpy()
                values, in_double_values = (bordered(tap, each, 0.0) for each in (sources[name], double_source))
                result[name].add(found, expected, in_double, values, in_double_values, grid)
                if tap.source in forced.given_sources:
                    floats = as_in_model(tap, outputs[tap.source])
                    result[name].add_floats(floats, sources[name], double_source, grid)
            picture = round_to_uint8(image_output.images.as_rgb(outputs[image_output.name]))
            codes, floor_codes = round_to_uint8(trace.image), round_to_uint8(floor.image)
            result[OUTPUT].add(picture, codes, floor_codes, trace.image, floor.image, PIXELS)
    return list(result.values())


def _mixed(trace: _Trace, taps: Iterable[Tap], grids: Mapping[str, Grid]) -> _Trace:
    """What arrives at each quantizer, in random order: each channel then gets values that others have.

    Behind a ReLU, many channels are zero all over a small image, and a wrong weight of theirs would not show.
    """
    random, mixed = np.random.default_rng(_MIXING), _Trace()
    by_layer = {tap.layer: tap for tap in taps}
    by_codes = {tap.codes: tap.layer for tap in taps if not tap.same_as}
    for name in sorted(trace.sources, key=lambda name: bool(by_layer[name].same_as)):
        tap = by_layer[name]
        if tap.joined:
            parts = [
                (mixed.sources[by_codes[codes]].numpy(), is_rectified) for codes, is_rectified in tap.joined.items()
            ]
            source = np.concatenate([np.maximum(part, 0.0) if clipped else part for part, clipped in parts], 1)
        elif tap.same_as:
            # One quantizer of the graph stands for both, perhaps in front of a pixel shuffle.
            whole = unshuffled(mixed.sources[tap.same_as].numpy(), by_layer[tap.same_as].block)
            source = shuffled(whole, tap.block)
        else:
            values = trace.sources[name].numpy()
            source = random.permutation(values.reshape(-1)).reshape(values.shape)
        mixed.sources[name] = torch.from_numpy(np.ascontiguousarray(source))
        mixed.codes[name] = grid_codes(mixed.sources[name], grids[layer_of_run(name)]).numpy()
    return mixed


def _twins(trace: _Trace, taps: Iterable[Tap]) -> dict[str, str]:
    """The names of all runs of layers that run more often than the graph has them -> those of runs on other inputs.

    A layer that runs twice on the same input is computed once in a graph.
    """
    wanted = Counter(layer_of_run(tap.layer) for tap in taps)
    runs: dict[str, list[str]] = {}
    for name in trace.sources:
        runs.setdefault(layer_of_run(name), []).append(name)
    found: dict[str, str] = {}
    for layer, names in runs.items():
        if len(names) == wanted[layer]:
            continue
        apart: list[str] = []
        for name in names:
            source = trace.sources[name]
            same = (index for index, other in enumerate(apart) if torch.equal(trace.sources[other], source))
            index = next(same, len(apart))
            apart += [name] if index == len(apart) else []
            found[name] = run_name(layer, index)
    return found


def _check_taps(taps: Iterable[Tap], trace: _Trace) -> None:
    """Refuse a graph that does not say of each of the model's quantizers, and of no others, where it is."""
    said, ran = {tap.layer for tap in taps}, set(trace.codes)
    if said != ran:
        hidden, unknown = sorted(ran - said), sorted(said - ran)
        raise InputError(
            "cannot check this graph layer by layer",
            why=f"it does not say where {hidden[0]} is quantized" if hidden else f"the model quantizes no {unknown[0]}",
            fix="check the model.onnx as odm-deploy export wrote it",
        )


def center_crops(images: Iterable[Rgb]) -> list[NDArray[np.float32]]:
    """The middle of images, at most `LAYER_CROP_PX` high and wide, as float32 [1, 3, H, W] in 0..255."""
    crops: list[NDArray[np.float32]] = []
    for image in images:
        top, left = (max(0, (size - LAYER_CROP_PX) // 2) for size in image.shape[:2])
        crops.append(to_batch(image[top : top + LAYER_CROP_PX, left : left + LAYER_CROP_PX]))
    return crops


@torch.no_grad()
def _trace(model: QuantizedModel, image: Tensor, twins: Mapping[str, str], given: _Trace | None = None) -> _Trace:
    """Run the reference and keep what arrives at each quantizer, and its codes; runs with `twins` under their names.

    With `given`, each quantizer hands on the codes that it had there: what float64 computes behind float32's codes.
    """
    trace, grids = _Trace(), model.grids

    def watch(layer: str) -> Callable[[Tensor], Tensor]:
        runs = itertools.count()

        def tap(x: Tensor) -> Tensor:
            name = run_name(layer, next(runs))
            name = twins.get(name, name)
            trace.sources[name] = x
            trace.codes[name] = grid_codes(x, grids[layer]).numpy()
            # Its levels, not its values: between float32 and float64 a value on a tie would change its code here, and
            # pass for rounding in the layers behind.
            return x if given is None else fake_quantize(given.sources[name], grids[layer]).to(x.dtype)

        return tap

    with tapped(model, watch):
        trace.image = model(image).numpy()
    return trace
