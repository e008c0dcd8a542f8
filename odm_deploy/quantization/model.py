"""A quantized model: a network whose quantized layers are frozen. The reference that every engine is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.replacing import replace_modules
from odm_deploy.networks.running import run_network
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer, quantized_layer
from odm_deploy.quantization.operation_signals import ended_by_anything
from odm_deploy.quantization.signals import SignalQuantizer, signals_of, with_signals

Layer = TypeVar("Layer", bound=QuantizedLayer)


@dataclass(frozen=True)
class ExactProof:
    """What was found when it was proven that no float32 engine rounds in a model (`quantization.exact`)."""

    float32_bits: int
    """Significant bits of a float32: what every sum has to fit."""
    bits: Mapping[str, float]
    """Bits that the largest sum of each layer needs, by dotted name."""
    coarsened_channels: int
    """Output channels whose weight scales were made coarser to fit."""


@dataclass(frozen=True)
class QuantizedModel:
    """A network with frozen quantized layers, and what is known about how it came about."""

    network: SuperResolutionNetwork
    """In eval mode; its quantized layers are `QuantizedLayer`s, the rest is float."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Provenance, plain values only. Nothing reads it to run the model."""
    exact: ExactProof | None = None
    """Set where it is proven that the model's arithmetic never rounds (`exact.freeze.freeze_exact`), else None. Its
    engines then compute without TF32 and half precision, and bundles hold golden outputs."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return self.network.scale

    @property
    def layers(self) -> dict[str, QuantizedLayer]:
        """The quantized layers by dotted name, in network order."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, QuantizedLayer)}

    @property
    def signals(self) -> dict[str, SignalQuantizer]:
        """The quantizers of tensors between layers, by name."""
        return signals_of(self.network)

    @property
    def grids(self) -> dict[str, Grid]:
        """Every static grid in the model: of a layer's input by the layer's name, of a signal by the signal's."""
        return {name: quantizer.grid for name, quantizer in {**self.layers, **self.signals}.items()}

    def double(self) -> QuantizedModel:
        """The same model computed in float64, to measure how far rounding alone moves the output.

        What the network's code brings to another type is rounded by that, and goes on in float64.
        """
        network = copy.deepcopy(self.network).double()
        for module in network.modules():
            if any(tensor.is_floating_point() for tensor in module.state_dict().values()):
                module.register_forward_pre_hook(_in_float64)
        return QuantizedModel(network, self.metadata, self.exact)

    @ended_by_anything()
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], unclamped, in the network's dtype."""
        return run_network(self.network, images)


def _in_float64(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook that brings numbers to the type of the parameters that they meet."""
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


@contextmanager
def tapped(model: QuantizedModel, tap_of: Callable[[str], Callable[[Tensor], Tensor]]) -> Generator[None]:
    """While this lasts, what arrives at each quantizer goes through `tap_of(name)` first; names as in `model.grids`."""
    quantizers = {**model.layers, **model.signals}
    try:
        for name, quantizer in quantizers.items():
            quantizer.tap = tap_of(name)
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.tap = None


@contextmanager
def computed_by(
    layers: Iterable[Layer], compute: Callable[[Layer, Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Generator[None]:
    """While this lasts, `compute` is handed what each of the layers is given, after the layer and what it would do."""
    before = {layer: vars(layer).get("forward") for layer in layers}
    try:
        for layer in before:
            layer.forward = partial(compute, layer, layer.forward)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for layer, own in before.items():
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own


def freeze(
    network: SuperResolutionNetwork,
    layers: Mapping[str, FrozenLayer],
    metadata: dict[str, Any] | None = None,
    signals: Mapping[str, Grid] | None = None,
) -> QuantizedModel:
    """A quantized model made of a float network and the decisions for its layers; `network` is left as it is.

    Args:
        network: the float network.
        layers: what was decided for each quantized layer.
        metadata: provenance, plain values.
        signals: grids of tensors between layers, by the signal's name; all others stay float.

    Raises:
        InputError: a layer or signal the network lacks, or codes that do not fit it.
    """
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    modules = dict(frozen.named_modules())
    replacements: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        if name not in modules:
            raise InputError(
                f"{network.title} has no layer {name}", why=f"layers are {', '.join(list(modules)[1:5])} ..."
            )
        replacements[name] = quantized_layer(name, modules[name], layer)
    replace_modules(frozen, replacements)
    with_signals(frozen, signals or {})
    return QuantizedModel(frozen, dict(metadata or {}))
