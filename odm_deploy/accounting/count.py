"""`account`: cost of a network or a model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

from odm_deploy.accounting.macs import count_macs, full_hd_px
from odm_deploy.accounting.numbers import FLOAT_BITS, float_bits, numbers_of
from odm_deploy.accounting.paper_rules import PAPER_RULES, Convention, PaperRule
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.signal_plan import plan_signals

_WHOLE_PX = 64
"""Heights and widths of inputs that windows divide."""


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
    output_px: tuple[int, int] | None = None,
) -> Accounting:
    """Count what a quantized model costs, or what a float network would cost under a quantization policy.

    Args:
        subject: a quantized model, whose folded batch norms are part of its convolutions in both conventions; or a
            float network, whose weights do not matter and are not read.
        policy: what of a float network is quantized with how many bits; None counts it as it is.
        convention: see the module's docstring.
        output_px: height and width of the output image, multiples of the scale; None: 1080x1920, or a little less.

    Raises:
        UsageError: an unknown convention, an output size the scale does not divide, or a policy that fits nothing.
        InputError: a foreign network that does not run without data.
    """
    if convention not in get_args(Convention):
        raise UsageError(f"no convention {convention!r}", fix=f"use {' or '.join(get_args(Convention))}")
    network = subject.network if isinstance(subject, QuantizedModel) else subject
    bits = {} if policy is None else policy.select(network)
    output_px, macs = full_hd_macs(network) if output_px is None else (output_px, count_macs(network, output_px))
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
        numbers = numbers_of(module, bits.get(name), per_channel=policy is not None and policy.per_channel)
        weight = activation = FLOAT_BITS
        if numbers is not None:
            float_input = convention == "paper" and name in rule.float_inputs
            weight, activation = numbers.bits.weight, FLOAT_BITS if float_input else numbers.bits.activation
            ranges = 0 if float_input else rule.range_words_per_quantizer
            storage = numbers.paper_bits(ranges) if convention == "paper" else numbers.stored_bits()
        else:
            storage = float_bits(module, convention)
        if storage or macs[name]:
            kind = type(module).__name__.removeprefix("Quantized")
            costs.append(LayerCost(name, kind, macs[name], weight, activation, storage))
    return Accounting(network.name, network.scale, convention, output_px, tuple(costs))


def full_hd_macs(network: SuperResolutionNetwork) -> tuple[tuple[int, int], dict[str, int]]:
    """Multiply-adds of Full HD, or of a little less where code wants whole windows, and of which size they are.

    All shares of work are of these: those of layers that see a part of the image depend on its size.

    Raises:
        InputError: as `count_macs`.
    """
    scale, output_px = network.scale, full_hd_px(network.scale)
    try:
        return output_px, count_macs(network, output_px)
    except InputError:
        height, width = (max(side // (scale * _WHOLE_PX), 1) * scale * _WHOLE_PX for side in output_px)
        with suppress(InputError):
            return (height, width), count_macs(network, (height, width))
        raise


def _planned_signals(
    network: SuperResolutionNetwork, policy: QuantizationPolicy | None, layers: Mapping[str, LayerBits]
) -> dict[str, int]:
    """Widths of the tensors between layers that a policy puts on grids."""
    if policy is None or policy.signals is None:
        return {}
    plan = plan_signals(network, layers.keys(), fused=policy.fused, operations=not policy.power_of_two)
    return {signal.name: policy.signals for signal in plan.signals}


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


def body_policy(bits: int) -> QuantizationPolicy | None:
    """The papers' policy, the body at one width; None for 32 bits, which is the float network.

    Raises:
        UsageError: a width that is neither 2 to 8 nor 32.
    """
    return None if bits == FLOAT_BITS else QuantizationPolicy(body=LayerBits(bits, bits))
