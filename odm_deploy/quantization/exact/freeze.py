"""From a model on power-of-two grids to one that is proven exact: round its biases, prove every sum, write it down."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.grid import MAX_BITS, Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.exact.bounds import Channel, bounds_of, prove, widest
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer
from odm_deploy.quantization.model import ExactProof, QuantizedModel, freeze
from odm_deploy.quantization.power_of_two import FLOAT32_BITS, round_to_multiples
from odm_deploy.quantization.weights import nearest_codes, quantize_weight


@torch.no_grad()
def check_integer(network: SuperResolutionNetwork, layers: Iterable[str]) -> None:
    """Refuse a float network that could not be exact whatever its grids and codes, before any are chosen.

    Args:
        network: made exact (`SuperResolutionNetwork.make_exact`).
        layers: that will be quantized.

    Raises:
        InputError: it computes more than integers can; the line names what.
    """
    modules = dict(network.named_modules())
    plain = {name: modules[name].get_parameter("weight") for name in layers}
    rough = {
        name: FrozenLayer(quantize_weight(weight, MAX_BITS, power_of_two=True), Grid(1.0, 0, MAX_BITS), None)
        for name, weight in plain.items()
    }
    integer_program(freeze(network, rough))


@torch.no_grad()
def freeze_exact(model: QuantizedModel, weights: Mapping[str, Tensor] | None = None) -> QuantizedModel:
    """The model with rounded biases and the proof that its arithmetic is exact; `model` is left as it is.

    What training or calibration has to have seen to: every layer quantized, power-of-two activation scales, weight
    scales with short mantissas, the network's constants made exact (`SuperResolutionNetwork.make_exact`).

    Args:
        model: the frozen model.
        weights: float weights by layer. Given, channels whose sums are too long get coarser scales, by powers of two,
            and codes chosen anew from these; without, such a model is refused.

    Raises:
        InputError: the model is not integer arithmetic throughout; or a sum exceeds what float32 holds, and coarser
            scales would leave a channel nothing but zeros. The line names the layer, the bound and the remedy.
    """
    exact = QuantizedModel(copy.deepcopy(model.network), model.metadata)
    biases = {name: layer.bias for name, layer in model.layers.items()}
    for name, layer in exact.layers.items():
        _round_bias(layer, biases[name])
    coarsened: set[Channel] = set()
    while weights is not None and (long := _too_long(exact)):
        for name in sorted({name for name, _ in long}):
            layer = exact.layers[name]
            _coarsen(layer, sorted(channel for owner, channel in long if owner == name), weights[name])
            _round_bias(layer, biases[name])
        coarsened |= long
    return proven(exact, coarsened_channels=len(coarsened))


def proven(model: QuantizedModel, *, coarsened_channels: int = 0) -> QuantizedModel:
    """The model, left as it is, with the proof that its arithmetic never rounds, which records `coarsened_channels`.

    Raises:
        InputError: the model is not integer arithmetic throughout, or a sum exceeds what float32 holds.
    """
    bits = {layer: round(bound.bits, 2) for layer, bound in widest(prove(integer_program(model))).items()}
    return dataclasses.replace(model, exact=ExactProof(FLOAT32_BITS, bits, coarsened_channels))


def bias_unit(layer: QuantizedLayer) -> Tensor:
    """What an exact layer's biases are multiples of, [O] or [1], float64: input scale * weight scale.

    Then products set the unit of the layer's sums, and dividing a bias by the scale, as engines do that add it to the
    integer sum, is exact, too.
    """
    return layer.scale.double() * layer.grid.scale


def _round_bias(layer: QuantizedLayer, bias: Tensor | None) -> None:
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(round_to_multiples(bias, bias_unit(layer)))


def _too_long(model: QuantizedModel) -> frozenset[Channel]:
    """Layers' channels whose weight scales are too fine for float32, where they can be made coarser."""
    failing = (bound.origins for bound in bounds_of(integer_program(model)) if not bound.holds)
    layers = model.layers
    return frozenset(
        (name, channel) for name, channel in frozenset[Channel]().union(*failing) if layers[name].weight_codes.step == 1
    )


def _coarsen(layer: QuantizedLayer, channels: list[int], weight: Tensor) -> None:
    """Double these output channels' weight scales, or the one that all share, and choose the codes anew."""
    chosen = torch.tensor(channels) if len(layer.scale) > 1 else torch.arange(len(weight))
    layer.scale[channels if len(layer.scale) > 1 else [0]] *= 2
    codes = nearest_codes(weight.float()[chosen], layer.scale.expand(len(weight))[chosen], layer.weight_bits)
    emptied = layer.codes[chosen].flatten(1).any(1) & ~codes.flatten(1).any(1)
    if emptied.any():
        # A model that computes nothing would agree with itself on every runtime.
        raise InputError(
            f"{layer.name} cannot be exact",
            why=f"weight scales coarse enough for float32's {FLOAT32_BITS} bits leave its output channel "
            f"{int(chosen[emptied][0])} nothing but zeros: what is added to it later is so much larger",
            fix="use trained weights, whose features keep their magnitude from layer to layer",
        )
    layer.codes[chosen] = codes.to(torch.int8)
