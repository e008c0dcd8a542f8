"""What a quantized network costs: storage and bit operations, the papers' way and the honest way.

    storage = sum over tensors of numbers * bits / 32            in 32-bit words
    BitOPs  = sum over layers of 2 * MAC * b_w * b_a             for one output image of a given size

Biases, activations and additions cost no bit operations. Everything is counted from the network itself: multiply-adds
by running it without data, numbers by looking at its tensors. A float network is counted as a policy would have it, a
quantized model as it is.

Two conventions:

- `paper` reproduces Table 4 of the ODM paper (Hong & Lee, ECCV 2024). Its rules, see `PAPER_RULES`, follow the official
  code of the methods compared there, which leaves the inputs of some layers unquantized. Constants, weight scales and
  running statistics are not counted.
- `honest` counts what `model.pt` holds and what an engine of this project computes: packed codes, every scale and zero
  point (those of signals between layers, too), batch norms folded, every quantized layer fed by a quantizer of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.signal_plan import plan_signals

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

    def to_dict(self) -> dict[str, Any]:
        """What it costs, as plain values; its name and widths are the caller's to add."""
        return {
            "kind": self.kind,
            "storage_bytes": self.storage_bits / 8,
            "macs": self.macs,
            "bit_operations": self.bit_operations,
        }


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
    subject: SuperResolutionNetwork | QuantizedModel,
    policy: QuantizationPolicy | None = None,
    *,
    convention: Convention = "honest",
    output_px: tuple[int, int] = FULL_HD_PX,
) -> Accounting:
    """Count what a quantized model costs, or what a float network would cost under a quantization policy.

    Args:
        subject: a quantized model, whose folded batch norms are part of its convolutions in both conventions; or a
            float network, whose weights do not matter and are not read.
        policy: what of a float network is quantized with how many bits; None counts it as it is.
        convention: see the module's docstring.
        output_px: height and width of the output image, multiples of the scale.

    Raises:
        UsageError: an unknown convention, an output size the scale does not divide, or a policy that fits nothing.
        InputError: a foreign network that does not run without data.
    """
    if convention not in get_args(Convention):
        raise UsageError(f"no convention {convention!r}", fix=f"use {' or '.join(get_args(Convention))}")
    network = subject.network if isinstance(subject, QuantizedModel) else subject
    bits = {} if policy is None else policy.select(network)
    macs = count_macs(network, output_px)
    rule = PAPER_RULES.get(network.name, PaperRule())
    costs: list[LayerCost] = []
    if convention == "honest":
        signals = (
            {name: signal.grid.bits for name, signal in subject.signals.items()}
            if isinstance(subject, QuantizedModel)
            else _planned_signals(network, policy, bits)
        )
        costs += [LayerCost(name, "Signal", 0, FLOAT_BITS, width, 2 * FLOAT_BITS) for name, width in signals.items()]
    for name, module in network.named_modules():
        numbers = _numbers_of(module, bits.get(name), per_channel=policy is not None and policy.per_channel)
        weight = activation = FLOAT_BITS
        if numbers is not None:
            float_input = convention == "paper" and name in rule.float_inputs
            weight, activation = numbers.bits.weight, FLOAT_BITS if float_input else numbers.bits.activation
            ranges = 0 if float_input else rule.range_words_per_quantizer
            storage = numbers.paper_bits(ranges) if convention == "paper" else numbers.stored_bits()
        else:
            storage = _float_bits(module, convention)
        if storage or macs[name]:
            kind = type(module).__name__.removeprefix("Quantized")
            costs.append(LayerCost(name, kind, macs[name], weight, activation, storage))
    return Accounting(network.name, network.scale, convention, output_px, tuple(costs))


def _planned_signals(
    network: SuperResolutionNetwork, policy: QuantizationPolicy | None, layers: Mapping[str, LayerBits]
) -> dict[str, int]:
    """Widths of the tensors between layers that a policy puts on grids."""
    if policy is None or policy.signals is None:
        return {}
    return {signal.name: policy.signals for signal in plan_signals(network, layers.keys()).signals}


@dataclass(frozen=True)
class FloatShare:
    """A module of a quantized model whose products are computed in float."""

    name: str
    """Its dotted name."""
    macs_share: float
    """Its part of all multiply-adds, 0 to 1."""


def float_shares(model: QuantizedModel) -> list[FloatShare]:
    """What of a quantized model stays float, largest share first. Raises InputError as `count_macs`."""
    counted = account(model).layers
    total = sum(layer.macs for layer in counted) or 1
    floats = [layer for layer in counted if layer.macs and layer.name not in model.layers]
    shares = [FloatShare(layer.name or "(the network itself)", layer.macs / total) for layer in floats]
    return sorted(shares, key=lambda share: -share.macs_share)


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
        InputError: a foreign network that does not run without data.
    """
    height, width = output_px
    if min(output_px) < 1 or height % network.scale or width % network.scale:
        raise UsageError(
            f"cannot count for a {width}x{height} output", why=f"{network.name} upscales by {network.scale}"
        )
    shadow = copy.deepcopy(network).to("meta").eval()
    image = torch.empty(1, 3, height // network.scale, width // network.scale, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            shadow(image)
    except OdmError:
        raise
    except Exception as error:  # somebody else's forward may do anything to a tensor without data
        raise InputError(
            f"cannot count the operations of {network.name}", why=f"{type(error).__name__}: {error}"[:200]
        ) from error
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


@dataclass(frozen=True)
class _Numbers:
    """How many numbers make up a quantized layer."""

    bits: LayerBits
    weights: int
    learnable: int
    """In its bias and its offsets."""
    scales: int
    """Of its weights."""
    grid: int
    """Of its input: scale, zero point and, on free grids, center."""

    def paper_bits(self, ranges: int) -> int:
        """Codes, learnable vectors, and the words that stand for the range of the quantizer before the layer."""
        return self.weights * self.bits.weight + FLOAT_BITS * (self.learnable + ranges)

    def stored_bits(self) -> int:
        """What `model.pt` holds: packed codes, and words for all the rest."""
        packed_bytes = -(-self.weights * self.bits.weight // 8)
        return 8 * packed_bytes + FLOAT_BITS * (self.learnable + self.scales + self.grid)


def _numbers_of(module: nn.Module, planned: LayerBits | None, *, per_channel: bool) -> _Numbers | None:
    """Of a layer that is quantized, or planned to be at these widths; None of one that stays float."""
    if isinstance(module, QuantizedLayer):
        bits = LayerBits(module.weight_bits, module.grid.bits)
        learnable = sum(value.numel() for value in (module.bias, module.shift, module.gain) if value is not None)
        return _Numbers(bits, module.codes.numel(), learnable, module.scale.numel(), 3 if module.grid.is_free else 2)
    if planned is None:
        return None
    weight = module.get_parameter("weight")
    learnable = sum(parameter.numel() for parameter in module.parameters(recurse=False)) - weight.numel()
    return _Numbers(planned, weight.numel(), learnable, weight.shape[0] if per_channel else 1, 2)


def _float_bits(module: nn.Module, convention: Convention) -> int:
    """A float module's own tensors: parameters only in the papers, everything in its state dict otherwise."""
    if convention == "paper":
        return sum(parameter.numel() for parameter in module.parameters(recurse=False)) * FLOAT_BITS
    children = tuple(f"{name}." for name, _ in module.named_children())
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(children)}
    return sum(8 * value.numel() * value.element_size() for value in own.values())
