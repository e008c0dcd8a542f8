"""Gains and ranges by the output of each layer: what they are fitted to besides photographs, and when that counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.progress import Track
from odm_deploy.quantization.contrast_chart import contrast_chart
from odm_deploy.quantization.equalization import offset_inputs
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.observers import InputObserver
from odm_deploy.quantization.patches import layer_patches
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.reconstruction import fit_input, input_error

if TYPE_CHECKING:
    from odm_deploy.quantization.post_training import CalibrationSettings

PHOTOGRAPHS_DB = 4.0
"""What layers' outputs may lose on photographs, in the mean, by ranges with room for lettering, too; a bit is 6 dB."""


@dataclass(frozen=True)
class FittedRanges:
    """Layers with the offsets and the range that their outputs like best."""

    layers: dict[str, FrozenLayer]
    observers: dict[str, InputObserver]
    """What offset inputs look like."""
    gained_db: float = 0.0
    """By how much their outputs are nearer to float, in the mean, than with what was fitted to something else."""


def fit_ranges(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    layers: Mapping[str, FrozenLayer],
    policy: QuantizationPolicy,
    settings: CalibrationSettings,
    track: Track,
) -> FittedRanges:
    """Fit each of these layers alone.

    What a grid cuts off of a saturated area tints all of it where no sum in float makes up for it: in the tail, and
    between sums that are rounded to codes, too. What it cuts off of lettering blurs it anywhere. 8 bits have room for
    both; strokes in the tail, where the errors of a layer are those of the picture, would cost photographs more. Of
    many small networks they cost photographs more than `PHOTOGRAPHS_DB` anywhere.

    Args:
        network: the float network.
        parts: of photographs, float32 [N, 3, H, W] in 0..255.
        layers: by their names, on ordinary grids.
        policy: the widths and the profile that they are of.
        settings: what is fitted.
        track: for a progress bar.
    """
    fit = partial(_fit, network, settings=settings, track=track, symmetric=policy.symmetric)
    roomy = {name: layer for name, layer in layers.items() if layer.grid.bits == MAX_BITS}
    tinted = {
        name: layer
        for name, layer in roomy.items()
        if policy.signals is not None or network.region_of(name) in (Region.BODY_END, Region.TAIL)
    }
    blurred = {name: layer for name, layer in roomy.items() if name not in tinted}
    others = {name: layer for name, layer in layers.items() if name not in roomy}
    # Of parts of different sizes small ones are left out.
    size = [max(part.shape[axis] for part in parts) for axis in (2, 3)]
    found: list[FittedRanges] = []
    if tinted:
        found.append(fit([contrast_chart(*size), *parts], tinted))
    if blurred:
        both = fit([contrast_chart(*size, strokes=True), *parts], blurred)
        photographs = fit(parts, blurred, beside=both)
        found.append(photographs if photographs.gained_db > PHOTOGRAPHS_DB else both)
    if others:
        found.append(fit(parts, others))
    return FittedRanges(
        {name: layer for each in found for name, layer in each.layers.items()},
        {name: observer for each in found for name, observer in each.observers.items()},
    )


def _fit(
    network: SuperResolutionNetwork,
    shown: Sequence[Tensor],
    layers: Mapping[str, FrozenLayer],
    *,
    beside: FittedRanges | None = None,
    settings: CalibrationSettings,
    track: Track,
    symmetric: bool,
) -> FittedRanges:
    found: dict[str, FrozenLayer] = {}
    observers: dict[str, InputObserver] = {}
    gains: list[float] = []
    adaptive = settings.adaptive_rounding
    for patches in layer_patches(network, shown, list(layers), partial(track, stage="ranges")):
        layer = found[patches.name] = fit_input(
            layers[patches.name],
            patches,
            equalize=settings.equalize,
            search=settings.output_ranges,
            adaptive=adaptive,
            symmetric=symmetric,
        )
        if layer.offsets is not None:
            observers[patches.name] = InputObserver(patches.name)
            observers[patches.name].add(offset_inputs(patches.inputs, patches, layer.offsets))
        if beside is not None:
            other, own = (
                input_error(each, patches, adaptive=adaptive) for each in (beside.layers[patches.name], layer)
            )
            gains.append(10.0 * math.log10(other / own) if other and own else 0.0)
    return FittedRanges(found, observers, sum(gains) / max(len(gains), 1))
