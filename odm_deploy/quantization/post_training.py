"""Post-training quantization: watch the float network on images, choose grids and weight codes, freeze."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.contrast_chart import contrast_chart
from odm_deploy.quantization.cross_layer import SCALED_CHANNELS, equalize_channels
from odm_deploy.quantization.exact.freeze import check_integer, freeze_exact
from odm_deploy.quantization.exact.refine import refine_grids
from odm_deploy.quantization.exact.sums import with_exact_sums
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.observers import InputObserver, observe
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.range_fitting import fit_ranges
from odm_deploy.quantization.ranges import RangeMethod, choose_grid, clipped_share, relative_mismatch
from odm_deploy.quantization.reconstruction import divided_by_gains
from odm_deploy.quantization.signal_calibration import SignalObservers, on_grids, on_sum_units, sharing
from odm_deploy.quantization.signal_plan import SignalPlan, plan_signals
from odm_deploy.quantization.size_dependence import depends_on_size
from odm_deploy.quantization.weight_fitting import fit_all_weights
from odm_deploy.quantization.weights import quantize_weight

PARTS = 16
"""Images of which parts are kept, for what needs more than one look: the middle to fit to, a corner to choose by."""
PART_PX = 48
"""Height and width of a part."""
WHOLE_PX = PARTS * 256**2
"""Pixels of all parts together, where these are whole inputs: one batch of them goes through the network."""
REFINED_ON = 8
"""Parts that decide between neighbouring power-of-two grids."""
REFINED_PX = 32
"""Height and width of a part for those: there are a hundred grids to try."""

CHART_EVERY = 16
"""For how many images there is a small one of the largest contrasts, where ranges have powers of two as scales."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How ranges and scales are chosen; which layers, with how many bits, is the policy's."""

    method: RangeMethod = RangeMethod.MSE
    """How activation ranges are chosen."""
    percentile: float = 99.99
    """For `RangeMethod.PERCENTILE`, in (50, 100]."""
    search_weights: bool = True
    """Weight scales by the smallest squared error rather than by the largest |w|."""
    exact_sums: bool = True
    """Round scales to few significant bits where that makes sums exact (`odm_deploy.quantization.exact.sums`)."""
    equalize: bool = True
    """Try a gain for each channel in front of the quantizer (`odm_deploy.quantization.equalization`); not in profile
    exact and not on free grids."""
    output_ranges: bool = True
    """With `RangeMethod.MSE`, ranges by the error of the layer's output rather than of its input; as `equalize`."""
    adaptive_rounding: bool = True
    """Weight codes by the layer's output (`odm_deploy.quantization.rounding`) rather than the nearest ones."""
    correct_bias: bool = True
    """Biases that make up for what rounding does to the mean of a layer's output."""
    in_sequence: bool = True
    """Weight codes and biases that also make up for the quantized layers in front (`quantization.sequential`). Off
    where layers of several calibrations are to be put together: what one made up for, another has not got."""
    whole_inputs: bool | None = None
    """Judge by whole inputs and not by the middle of each: for networks where what layers read depends on the image's
    size. None: where that is found (`quantization.size_dependence`)."""


Known = dict[Hashable, tuple[FrozenLayer, InputObserver]]
"""What calibrations of one network on the same images chose in front of each layer's weights, and what they saw."""


@dataclass(frozen=True)
class LayerSummary:
    """What calibration decided for one layer and what it costs there."""

    name: str
    """Dotted name of the layer."""
    lower: float
    """First level of the input's grid."""
    upper: float
    """Last level of the input's grid."""
    bits: int
    """Bits of an input code."""
    weight_bits: int
    """Bits of a weight code."""
    zero_point: int
    """Code of the level 0.0 (of the centre, on a free grid)."""
    clipped_share: float
    """Share of the observed inputs beyond the grid, 0 to 1."""
    mismatch: float
    """||X - q(X)||_2 / ||X||_2 over the observed inputs X."""


def calibrate(
    network: SuperResolutionNetwork,
    images: Iterable[Tensor],
    policy: QuantizationPolicy,
    settings: CalibrationSettings | None = None,
    metadata: Mapping[str, Any] | None = None,
    track: Track = untracked,
    known: Known | None = None,
) -> tuple[QuantizedModel, list[LayerSummary]]:
    """Quantize a float network after training.

    Args:
        network: the float network; left as it is.
        images: network inputs, float32 [N, 3, H, W] in 0..255, consumed one after the other; of the first
            `PARTS` of them, small parts are held.
        policy: which layers, with how many bits.
        settings: how ranges are chosen.
        metadata: provenance to keep in the model, plain values.
        track: for a progress bar while the network runs over the images (if they have a length), and while grids and
            weights are fitted, which happens after that.
        known: of earlier calibrations of this network on these images: what they chose for a layer at the same width is
            taken over, and what is chosen now is added. The result is the same without, but that ranges have room for
            lettering and colours or have not by all of the layers that are fitted at once.

    Returns:
        The quantized model, and a line about each quantized layer in network order.

    Raises:
        UsageError: the policy does not fit the network.
        InputError: no image, or activations that are not finite.
    """
    settings = settings or CalibrationSettings()
    bits = policy.select(network)
    original = network
    # Nothing learns, whatever somebody's code switches on in the middle.
    network = copy.deepcopy(network).requires_grad_(False)
    if policy.power_of_two:
        network.make_exact()
        check_integer(network, bits)
    elif settings.exact_sums:
        network.round_float_edges()
    plan, pixels = SignalPlan(), None
    count = len(images) if isinstance(images, Sized) else 0
    whole, images = _whole_inputs(original, images, settings)
    images, parts, unseen = _with_parts(images, None if whole else REFINED_PX if policy.power_of_two else PART_PX)
    scaled: dict[str, list[int]] = {}
    if policy.signals is not None:
        network.align_output()
        first = next(iter(bits))
        # Codes from the first layer on; `exact` has a grid of its own there.
        if network.region_of(first) is Region.HEAD and bits[first].activation == MAX_BITS and not policy.power_of_two:
            pixels = network.align_input()
        plan = plan_signals(network, bits.keys(), fused=policy.fused, operations=not policy.power_of_two)
        if settings.equalize:
            # Layers of two calibrations fit together only where their channels are scaled alike, whatever their widths.
            widths = bits if settings.in_sequence else dict.fromkeys(bits, LayerBits(MAX_BITS, MAX_BITS))
            scaled = equalize_channels(
                network, parts, widths, plan.feeds, plan.outputs, power_of_two=policy.power_of_two
            )
        # A gain would stand between codes, and few scales are short enough to be shared.
        settings = dataclasses.replace(settings, equalize=False, exact_sums=False)
    percentile = settings.percentile if settings.method is RangeMethod.PERCENTILE else None
    alike = (policy.per_channel, policy.free, policy.symmetric, dataclasses.replace(settings, in_sequence=True))
    keys = {name: (name, width, *alike) for name, width in bits.items()}
    if known is None or policy.signals is not None or policy.power_of_two:
        # There layers depend on each other.
        known = {}
    new = [name for name, key in keys.items() if key not in known]
    with SignalObservers(network, plan, percentile) as watched:
        # Told where the network runs: the parts have read most of the images already.
        watching = track(images, count, "calibrating") if count else images
        roomy = all(width.activation == MAX_BITS for width in bits.values())
        if policy.power_of_two and (roomy or policy.signals is not None):
            watching = _with_charts(watching, strokes=policy.signals is None)
        observers = observe(network, watching, new, percentile) if new else {}
    signals = watched.grids(
        policy.signals or MAX_BITS, settings.method, power_of_two=policy.power_of_two, symmetric=policy.symmetric
    )
    shared = sharing(plan, signals, {name: width.activation for name, width in bits.items()})
    modules = dict(network.named_modules())
    layers = {
        name: _freeze_layer(modules[name], observer, bits[name], policy, settings)
        for name, observer in observers.items()
    }
    layers = on_grids(layers, shared if pixels is None else {**shared, next(iter(bits)): pixels})
    if policy.power_of_two:
        first = next(iter(layers))
        layers[first] = dataclasses.replace(layers[first], grid=network.pixel_grid)
        if settings.method is RangeMethod.MSE:
            rough = freeze(network, layers, signals=signals)
            refine_grids(rough, network, parts[:REFINED_ON], partial(track, stage="refining grids"))
            layers = {name: dataclasses.replace(layer, grid=rough.layers[name].grid) for name, layer in layers.items()}
    elif not policy.free and settings.method is RangeMethod.MSE and (settings.equalize or settings.output_ranges):
        alone = {name: layer for name, layer in layers.items() if name not in shared and layer.grid is not pixels}
        fitted = fit_ranges(network, parts, alone, policy, settings, track)
        observers.update(fitted.observers)
        layers.update(fitted.layers)
    known.update({keys[name]: (layer, observers[name]) for name, layer in layers.items()})
    layers = {name: known[key][0] for name, key in keys.items()}
    observers = {name: known[key][1] for name, key in keys.items()}
    weights = {name: modules[name].get_parameter("weight") for name in layers}
    if not policy.power_of_two:
        weights = divided_by_gains(weights, layers)
    exact = None
    if settings.exact_sums and not policy.power_of_two:
        exact = with_exact_sums(layers, weights)
        layers = exact or layers
    if settings.adaptive_rounding or settings.correct_bias:
        layers = fit_all_weights(
            network,
            parts,
            unseen,
            layers,
            signals,
            exact,
            track,
            in_sequence=settings.in_sequence,
            round_weights=settings.adaptive_rounding,
            correct_bias=settings.correct_bias,
        )
    metadata = {**(metadata or {}), "exact_sums": policy.power_of_two or exact is not None}
    if scaled:
        metadata[SCALED_CHANNELS] = scaled
    if policy.power_of_two:
        model = freeze_exact(freeze(network, layers, metadata, signals), weights)
    else:
        model = freeze(network, on_sum_units(layers, signals), metadata, signals)
    return model, [_summary(observer, layers[name]) for name, observer in observers.items()]


def _with_charts(images: Iterable[Tensor], *, strokes: bool) -> Iterator[Tensor]:
    """The images, and a little of the largest contrasts there are.

    Of two powers of two the smaller one has the smaller error on photographs, and cuts off half of a saturated area,
    or of lettering.
    """
    for number, image in enumerate(images):
        if number % CHART_EVERY == 0:
            yield contrast_chart(*(max(length // 4, 1) for length in image.shape[2:]), strokes=strokes)
        yield image


def _whole_inputs(
    network: SuperResolutionNetwork, images: Iterable[Tensor], settings: CalibrationSettings
) -> tuple[bool, Iterable[Tensor]]:
    """Whether to judge by whole inputs, and the images, of which the first may have been looked at."""
    if settings.whole_inputs is not None or not network.is_foreign:
        return bool(settings.whole_inputs), images
    coming = iter(images)
    first = list(itertools.islice(coming, 1))
    return any(depends_on_size(network, image[:1]) for image in first), itertools.chain(first, coming)


def _with_parts(images: Iterable[Tensor], size: int | None) -> tuple[Iterator[Tensor], list[Tensor], list[Tensor]]:
    """The images; of the first few the middle, at most `size` pixels high and wide, and as much of a corner.

    With None, images as they are, and others where there are any.
    """
    coming = iter(images)
    first = list(itertools.islice(coming, PARTS))
    if size is None:
        pixels = itertools.accumulate(image.numel() // image.shape[1] for image in first)
        fit = sum(all_px <= WHOLE_PX for all_px in pixels)
        parts = first[: max(fit, 1)]
        return itertools.chain(first, coming), parts, first[len(parts) : 2 * len(parts)] or parts
    parts = [_middle(image, size).clone() for image in first]
    return itertools.chain(first, coming), parts, [_corner(image, size, n).clone() for n, image in enumerate(first)]


def _middle(image: Tensor, size: int) -> Tensor:
    """The middle of an image [N, C, H, W], at most `size` pixels high and wide."""
    top, left = (max(length - size, 0) // 2 for length in image.shape[2:])
    return image[..., top : top + size, left : left + size]


def _corner(image: Tensor, size: int, which: int) -> Tensor:
    """As much of one of the corners of an image, so that there are as many skies as lawns."""
    rows, columns = (slice(None, size) if number % 2 else slice(-size, None) for number in (which, which // 2))
    return image[..., rows, columns]


def _freeze_layer(
    layer: nn.Module,
    observer: InputObserver,
    bits: LayerBits,
    policy: QuantizationPolicy,
    settings: CalibrationSettings,
) -> FrozenLayer:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    grid = choose_grid(
        observer,
        bits.activation,
        settings.method,
        free=policy.free,
        power_of_two=policy.power_of_two,
        symmetric=policy.symmetric,
    )
    weight = quantize_weight(
        layer.weight,
        bits.weight,
        per_channel=policy.per_channel,
        search_mse=settings.search_weights,
        power_of_two=policy.power_of_two,
    )
    return FrozenLayer(weight, grid, layer.bias)


def _summary(observer: InputObserver, layer: FrozenLayer) -> LayerSummary:
    grid = layer.grid
    return LayerSummary(
        name=observer.name,
        lower=grid.lower,
        upper=grid.upper,
        bits=grid.bits,
        weight_bits=layer.weight.bits,
        zero_point=grid.zero_point,
        clipped_share=clipped_share(observer, grid),
        mismatch=relative_mismatch(observer, grid),
    )
