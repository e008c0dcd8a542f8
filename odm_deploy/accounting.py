"""What a quantized network costs on paper: storage and bit operations, the papers' way and the honest way.

    storage = sum over tensors of numbers * bits / 32            in 32-bit words
    BitOPs  = sum over layers of 2 * MAC * b_w * b_a             for one output image of a given size

Biases, activations and additions cost no bit operations. Everything is counted from the network itself: multiply-adds
by running it without data, numbers by looking at its tensors.

Two conventions:

- `paper` reproduces Table 4 of the ODM paper (Hong & Lee, ECCV 2024). Its rules, see `PAPER_RULES`, follow the official
  code of the methods compared there, which leaves the inputs of some layers unquantized. Constants, weight scales and
  running statistics are not counted.
- `honest` counts what `model.pt` holds and what an engine of this project computes: packed codes, every scale and zero
  point, batch norms folded, every quantized layer fed by a quantizer of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odm_deploy.errors import UsageError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy

Convention = Literal["paper", "honest"]

FLOAT_BITS = 32
FULL_HD_PX = (1080, 1920)
"""Height and width of the output image that the papers count for."""


@dataclass(frozen=True)
class PaperRule:
    """How a network's official quantized code departs from one quantizer before every quantized layer."""

    float_inputs: tuple[str, ...] = ()
    """Quantized layers whose input has no quantizer there: their activations count 32 bits."""
    range_words_per_quantizer: int = 2
    """Words the storage figure includes for the range (l, u) of each activation quantizer."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hyper-parameters of the network the figure describes, where they are not the defaults."""
    reason: str = ""
    """Why."""


PAPER_RULES: Mapping[str, PaperRule] = {
    "edsr": PaperRule(
        float_inputs=("body.0.body.0",),
        range_words_per_quantizer=0,
        reason="in the official graph no quantizer lies between the float head and the first block's convolution; the "
        "printed storage has no range words",
    ),
    "rdn": PaperRule(
        float_inputs=("GFF.1",),
        reason="the official global fusion has one quantizer, before its 1x1 convolution; the 3x3 one reads floats",
    ),
    "srresnet": PaperRule(
        config={"folded": False},
        reason="the official network keeps its batch norms, whose scales and shifts count as parameters",
    ),
}
"""By network name; others count with the default rule."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one module's own tensors and products."""

    name: str
    """Dotted name; for attention, whose products of activations belong to no layer, that of the attention module."""
    kind: str
    """Class of the module."""
    macs: int
    """Multiply-adds for one image."""
    weight_bits: int
    """Width of one operand of each product: the weight, or an activation in attention."""
    activation_bits: int
    """Width of the other."""
    storage_bits: int
    """Bits all its tensors take."""

    @property
    def bit_operations(self) -> int:
        """2 * MAC * b_w * b_a."""
        return 2 * self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class Accounting:
    """Cost of a network, layer by layer; totals are properties."""

    network: str
    """Name in the registry."""
    scale: int
    """Output pixels per input pixel along each axis."""
    convention: Convention
    output_px: tuple[int, int]
    """Height and width of the output image the operations are counted for."""
    layers: tuple[LayerCost, ...]
    """Every module that owns tensors or computes products, in network order."""

    @property
    def storage_words(self) -> float:
        """Storage in 32-bit words; the papers print thousands of these."""
        return sum(layer.storage_bits for layer in self.layers) / 32

    @property
    def storage_bytes(self) -> float:
        """Storage in bytes."""
        return sum(layer.storage_bits for layer in self.layers) / 8

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """Bit operations for one image; the papers print tera-operations."""
        return sum(layer.bit_operations for layer in self.layers)


def account(
    network: SuperResolutionNetwork,
    policy: QuantizationPolicy | None = None,
    *,
    convention: Convention = "honest",
    output_px: tuple[int, int] = FULL_HD_PX,
) -> Accounting:
    """Count what a float network would cost under a quantization policy.

    Args:
        network: a float network; its weights do not matter and are not read.
        policy: what is quantized with how many bits; None counts the float network.
        convention: see the module's docstring.
        output_px: height and width of the output image, multiples of the scale.

    Raises:
        UsageError: an unknown convention, an output size the scale does not divide, or a policy that fits nothing.
    """
    if convention not in get_args(Convention):
        raise UsageError(f"no convention {convention!r}", fix=f"use {' or '.join(get_args(Convention))}")
    bits = {} if policy is None else policy.select(network)
    macs = count_macs(network, output_px)
    rule = PAPER_RULES.get(network.name, PaperRule())
    layers: list[LayerCost] = []
    for name, module in network.named_modules():
        widths = bits.get(name)
        if convention == "paper":
            storage = _paper_storage_bits(module, widths, rule, quantizer=name not in rule.float_inputs)
        else:
            storage = _stored_bits(module, widths, per_channel=policy is not None and policy.per_channel)
        if not storage and not macs[name]:
            continue
        weight, activation = (FLOAT_BITS, FLOAT_BITS) if widths is None else (widths.weight, widths.activation)
        if convention == "paper" and name in rule.float_inputs:
            activation = FLOAT_BITS
        layers.append(LayerCost(name, type(module).__name__, macs[name], weight, activation, storage))
    return Accounting(network.name, network.scale, convention, output_px, tuple(layers))


def accounted_network(name: str, scale: int, convention: Convention) -> SuperResolutionNetwork:
    """The network a convention describes: the paper's as published, the honest one as this project deploys it.

    Raises:
        UsageError: no network of that name.
        InputError: it does not come at that scale.
    """
    config = PAPER_RULES.get(name, PaperRule()).config if convention == "paper" else {}
    with torch.device("meta"):
        return build_network(name, {"scale": scale, **config})


def body_policy(bits: int) -> QuantizationPolicy | None:
    """The papers' policy, the body at one width; None for 32 bits, which is the float network.

    Raises:
        UsageError: a width that is neither 2 to 8 nor 32.
    """
    return None if bits == FLOAT_BITS else QuantizationPolicy(body=LayerBits(bits, bits))


def count_macs(network: SuperResolutionNetwork, output_px: tuple[int, int] = FULL_HD_PX) -> dict[str, int]:
    """Multiply-adds of each module's own products (not its children's) for one image, by dotted name.

    The network runs on torch's meta device: shapes without data, so the full image costs milliseconds. Convolutions,
    linear layers and matrix products count, whichever module they are in.

    Raises:
        UsageError: an output size that the scale does not divide.
    """
    height, width = output_px
    if min(output_px) < 1 or height % network.scale or width % network.scale:
        raise UsageError(
            f"cannot count for a {width}x{height} output", why=f"{network.name} upscales by {network.scale}"
        )
    shadow = copy.deepcopy(network).to("meta").eval()
    image = torch.empty(1, 3, height // network.scale, width // network.scale, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(image)
    totals = counter.get_flop_counts()
    root = type(shadow).__name__

    modules = dict(shadow.named_modules())

    def children(name: str) -> list[str]:
        return [f"{name}.{child}" if name else child for child, _ in modules[name].named_children()]

    def total(name: str) -> int:
        found = totals.get(f"{root}.{name}" if name else root)
        # Lists of modules are never called themselves, so the counter does not know them. A multiply-add is two
        # operations to it.
        return sum(map(total, children(name))) if found is None else sum(found.values()) // 2

    return {name: total(name) - sum(map(total, children(name))) for name in modules}


def _paper_storage_bits(module: nn.Module, widths: LayerBits | None, rule: PaperRule, *, quantizer: bool) -> int:
    """Learnable parameters, weights of quantized layers at their width, and the range of each activation quantizer."""
    total = sum(parameter.numel() for parameter in module.parameters(recurse=False)) * FLOAT_BITS
    if widths is None:
        return total
    assert isinstance(module.weight, nn.Parameter)
    total -= module.weight.numel() * (FLOAT_BITS - widths.weight)
    return total + (rule.range_words_per_quantizer * FLOAT_BITS if quantizer else 0)


def _stored_bits(module: nn.Module, widths: LayerBits | None, *, per_channel: bool) -> int:
    """What `model.pt` holds of a module itself: all tensors of its state dict, packed codes for quantized weights."""
    children = tuple(f"{name}." for name, _ in module.named_children())
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(children)}
    if widths is None:
        return sum(8 * value.numel() * value.element_size() for value in own.values())
    weight = own.pop("weight")
    scales = weight.shape[0] if per_channel else 1
    grid = 2 * FLOAT_BITS  # scale and zero point of the input
    floats = sum(value.numel() for value in own.values()) + scales
    packed_bytes = -(-weight.numel() * widths.weight // 8)
    return 8 * packed_bytes + FLOAT_BITS * floats + grid
