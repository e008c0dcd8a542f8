"""Gains and ranges by the output of each layer: what they are fitted to besides photographs, and when that counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from odm_deploy.quantization.range_trials import RangeTrials
from odm_deploy.quantization.reconstruction import fit_input

if TYPE_CHECKING:
    from odm_deploy.quantization.post_training import CalibrationSettings

LETTERING_FOR_PHOTOGRAPHS = 4.0
"""How many dB of lettering are worth one of photographs."""
TINT = 2.0
"""By how many of 255 an area of one colour may change; ranges are fitted to those that change by more."""
SHARE_OF_TINT = 0.1
"""Layers that change such a colour by this share of what all do, alone, are fitted again."""
HELPS = 0.5
"""What is left of the largest such change, at most; with more, layers stay as they were."""
ROUNDS = 3
"""So often, since what is left is other layers' then."""


@dataclass(frozen=True)
class FittedRanges:
    """Layers with the offsets and the range that their outputs like best."""

    layers: dict[str, FrozenLayer]
    observers: dict[str, InputObserver]
    """What offset inputs look like."""

    def replaced_by(self, other: FittedRanges) -> FittedRanges:
        """With what the other has instead."""
        # In the order of this one, which is that of the network.
        return FittedRanges(self.layers | other.layers, self.observers | other.observers)


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
    both, which photographs pay for: by much in many small networks. So ranges of the body have room for lettering where
    it gains `LETTERING_FOR_PHOTOGRAPHS` times what they lose, and for a colour in those layers that tint it. Strokes
    in the tail, where the errors of a layer are those of the picture, would cost photographs more.

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
    trials = RangeTrials(network, parts)
    found, lines = FittedRanges({}, {}), [contrast_chart(*size, strokes=True)]
    if tinted:
        found = fit([contrast_chart(*size), *parts], tinted)
    if blurred:
        both, photographs = fit([*lines, *parts], blurred), fit(parts, blurred)
        gained_db = trials.lettering_db(both.layers) - trials.lettering_db(photographs.layers)
        lost_db = trials.photographs_db(photographs.layers) - trials.photographs_db(both.layers)
        if gained_db > LETTERING_FOR_PHOTOGRAPHS * max(lost_db, 0.0):
            found = found.replaced_by(both)
        else:
            found, lines = found.replaced_by(photographs), []
    if roomy:
        found = without_tint(
            found,
            roomy,
            trials,
            fit=lambda colours, layers: fit([*lines, *colours, *parts], layers),
            track=lambda names: track(names, len(names), stage="colours"),
        )
    return found.replaced_by(fit(parts, others)) if others else found


def without_tint(
    fitted: FittedRanges,
    layers: Mapping[str, FrozenLayer],
    trials: RangeTrials,
    fit: Callable[[Sequence[Tensor], Mapping[str, FrozenLayer]], FittedRanges],
    track: Callable[[Collection[str]], Iterable[str]],
) -> FittedRanges:
    """With ranges that have room for the colours that they tint, in the layers that do."""
    tints = trials.tints(fitted.layers)
    needed: set[int] = set()
    for _ in range(ROUNDS):
        shown = {colour: tint for colour, tint in tints.items() if tint > TINT}
        if not shown:
            break
        worst = max(shown, key=lambda colour: shown[colour])
        alone = {name: trials.tints(fitted.layers, [worst], only=name)[worst] for name in track(layers)}
        guilty = {name: layers[name] for name, tint in alone.items() if tint > SHARE_OF_TINT * shown[worst]}
        if not guilty:
            break
        # A layer that is fitted once more goes on having room for what it was fitted to before.
        needed |= shown.keys()
        other = fitted.replaced_by(fit([trials.image(colour) for colour in sorted(needed)], guilty))
        found = trials.tints(other.layers)
        # What does not help would only cost photographs.
        if not max(found.values()) < HELPS * shown[worst]:
            break
        fitted, tints = other, found
    return fitted


def _fit(
    network: SuperResolutionNetwork,
    shown: Sequence[Tensor],
    layers: Mapping[str, FrozenLayer],
    *,
    settings: CalibrationSettings,
    track: Track,
    symmetric: bool,
) -> FittedRanges:
    found: dict[str, FrozenLayer] = {}
    observers: dict[str, InputObserver] = {}
    for patches in layer_patches(network, shown, list(layers), partial(track, stage="ranges")):
        layer = found[patches.name] = fit_input(
            layers[patches.name],
            patches,
            equalize=settings.equalize,
            search=settings.output_ranges,
            adaptive=settings.adaptive_rounding,
            symmetric=symmetric,
        )
        if layer.offsets is not None:
            observers[patches.name] = InputObserver(patches.name)
            observers[patches.name].add(offset_inputs(patches.inputs, patches, layer.offsets))
    return FittedRanges(found, observers)
