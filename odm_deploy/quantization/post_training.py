"""Post-training quantization: watch the float network on images, choose grids and weight codes, freeze."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.exact.freeze import freeze_exact
from odm_deploy.quantization.exact.refine import refine_grids
from odm_deploy.quantization.exact.sums import with_exact_sums
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.observers import InputObserver
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.ranges import RangeMethod, choose_grid, clipped_share, relative_mismatch
from odm_deploy.quantization.weights import quantize_weight

REFINED_ON = 8
"""Images whose middle decides between neighbouring power-of-two grids."""
REFINED_PX = 40
"""Height and width of that middle: 8 such parts run in a second, and there are a hundred grids to try."""


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
    track_refining: Track = untracked,
) -> tuple[QuantizedModel, list[LayerSummary]]:
    """Quantize a float network after training.

    Args:
        network: the float network; left as it is.
        images: network inputs, float32 [N, 3, H, W] in 0..255, consumed one after the other; of them, only small parts
            of a few are held, where power-of-two grids are refined.
        policy: which layers, with how many bits.
        settings: how ranges are chosen.
        metadata: provenance to keep in the model, plain values.
        track_refining: for a progress bar while power-of-two grids are refined.

    Returns:
        The quantized model, and a line about each quantized layer in network order.

    Raises:
        UsageError: the policy does not fit the network.
        InputError: no image, or activations that are not finite.
    """
    settings = settings or CalibrationSettings()
    bits = policy.select(network)
    network = copy.deepcopy(network)
    if policy.power_of_two:
        network.make_exact()
    elif settings.exact_sums:
        network.round_float_edges()
    percentile = settings.percentile if settings.method is RangeMethod.PERCENTILE else None
    parts: list[Tensor] = []
    observers = observe(network, _keeping_parts(images, parts), bits, percentile)
    modules = dict(network.named_modules())
    layers = {
        name: _freeze_layer(modules[name], observer, bits[name], policy, settings)
        for name, observer in observers.items()
    }
    weights = {name: modules[name].get_parameter("weight") for name in layers}
    if policy.power_of_two:
        first = next(iter(layers))
        layers[first] = dataclasses.replace(layers[first], grid=network.pixel_grid)
        rough = freeze(network, layers, {**(metadata or {}), "exact_sums": True})
        if settings.method is RangeMethod.MSE:
            refine_grids(rough, network, parts, track_refining)
        layers = {name: dataclasses.replace(layer, grid=rough.layers[name].grid) for name, layer in layers.items()}
        model = freeze_exact(rough, weights)
    else:
        exact = with_exact_sums(layers, weights) if settings.exact_sums else None
        layers = exact or layers
        model = freeze(network, layers, {**(metadata or {}), "exact_sums": exact is not None})
    return model, [_summary(observer, layers[name]) for name, observer in observers.items()]


def _keeping_parts(images: Iterable[Tensor], parts: list[Tensor]) -> Iterator[Tensor]:
    """The images as they come; the middle of the first few is added to `parts`."""
    for image in images:
        if len(parts) < REFINED_ON:
            top, left = (max(size - REFINED_PX, 0) // 2 for size in image.shape[2:])
            parts.append(image[..., top : top + REFINED_PX, left : left + REFINED_PX].clone())
        yield image


def observe(
    network: SuperResolutionNetwork, images: Iterable[Tensor], layers: Iterable[str], percentile: float | None = None
) -> dict[str, InputObserver]:
    """Statistics of the inputs of `layers` while the float network runs over `images`, float32 [N, 3, H, W] in 0..255.

    Raises:
        InputError: no image, or activations that are not finite.
    """
    modules = dict(network.named_modules())
    observers = {name: InputObserver(name, percentile) for name in layers}

    def watched_by(observer: InputObserver) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: observer.add(inputs[0])

    with ExitStack() as hooks, torch.no_grad():
        for name, observer in observers.items():
            hooks.enter_context(modules[name].register_forward_pre_hook(watched_by(observer)))
        for image in images:
            network(image)
    if unseen := [name for name, observer in observers.items() if not observer.images]:
        raise InputError(
            "nothing to calibrate on", why=f"no image reached {unseen[0]}", fix="give --images more images"
        )
    return observers


def _freeze_layer(
    layer: nn.Module,
    observer: InputObserver,
    bits: LayerBits,
    policy: QuantizationPolicy,
    settings: CalibrationSettings,
) -> FrozenLayer:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    grid = choose_grid(observer, bits.activation, settings.method, free=policy.free, power_of_two=policy.power_of_two)
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
