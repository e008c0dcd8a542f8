"""Quantization policies: which layers are quantized, with how many bits and what kind of scales.

The default is the papers' region: the body's convolutions (and linears), all at the same width; head, body end and tail
stay float. Each of those can be added at a width of its own, and any layer overridden by name.

A *profile* is a starting point with a name, for command lines and recipes:

- `paper`: the papers' region, ordinary scales;
- `deploy`: everything but the first layer, 8 bits outside the body;
- `integer`: besides, the outputs of convolutions and the sums between them on 8-bit grids (`signals`), which runtimes
  on CPUs need to compute in integers throughout;
- `engine`: the same for TensorRT: zero in the middle of 8-bit grids (`symmetric`), and what a convolution gives to a
  sum or activation function is not rounded before (`fused`), so that there is one kernel for each convolution;
- `exact`: everything, 8 bits where nothing else is said, dyadic scales; the same bits on every runtime;
- `exact-integer`: besides, the signals of `integer` on dyadic scales; the same bits with bf16 for what is float, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from odm_deploy.errors import UsageError
from odm_deploy.grid import MAX_BITS, MIN_BITS
from odm_deploy.networks.base import Region, SuperResolutionNetwork


@dataclass(frozen=True)
class LayerBits:
    """Widths of one layer.

    Raises:
        UsageError: a width outside 2..8.
    """

    weight: int
    """Bits of a weight code."""
    activation: int
    """Bits of an input code."""

    def __post_init__(self) -> None:
        for bits in (self.weight, self.activation):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise UsageError(f"no quantization at {bits} bits", fix=f"widths are {MIN_BITS} to {MAX_BITS} bits")

    @classmethod
    def parse(cls, text: str) -> LayerBits | None:
        """`8`, `w4a8`, or `float` (None: leave the layer alone).

        Raises:
            UsageError: anything else.
        """
        if text == "float":
            return None
        if match := re.fullmatch(r"(?:w(\d+)a(\d+)|(\d+))", text):
            weight, activation, both = match.groups()
            return cls(int(weight or both), int(activation or both))
        raise UsageError(f"no such width {text!r}", fix="write 8, w4a8 or float")

    def for_any_cpu(self) -> LayerBits:
        """The same, and 7 bits of weights for inputs of 8: no two products, 2 * 63 * 255 at most, are 16 bits full.

        That is where CPUs without VNNI instructions add them up.
        """
        return LayerBits(min(self.weight, MAX_BITS - 1), self.activation) if self.activation == MAX_BITS else self


@dataclass(frozen=True)
class QuantizationPolicy:
    """What to quantize and how; see the fields.

    Raises:
        UsageError: power-of-two scales with a layer that is left float, or with free grids.
    """

    body: LayerBits
    """Widths of the body's layers, the region the papers quantize."""
    body_end: LayerBits | None = None
    """Widths of the convolutions between the last block and the upsampler; None: float."""
    tail: LayerBits | None = None
    """Widths of the upsampler and the reconstruction convolution; None: float."""
    head: LayerBits | None = None
    """Widths of the first convolution; None: float."""
    overrides: Mapping[str, LayerBits | None] = field(default_factory=dict[str, "LayerBits | None"])
    """Widths by layer name or pattern (`body.0.*`), later ones win; None: float."""
    per_channel: bool = True
    """One weight scale per output channel rather than per layer. Costs nothing on any runtime."""
    free: bool = False
    """Activation grids whose levels need not hold zero (`Grid.free`)."""
    symmetric: bool = False
    """Activation grids of 8 bits have zero in their middle: what engines pad with, so that they need no `Pad`, for half
    of the codes of a tensor that is never negative. Grids of less bits are as engines have them anyway."""
    signals: int | None = None
    """Bits of the tensors between layers that `signal_plan` finds; None: they stay float."""
    fused: bool = False
    """With signals: what a convolution gives to one sum or activation function alone stays float, for kernels that go
    on with it at once."""
    any_cpu: bool = False
    """Weights of inputs of 8 bits have 7, so that no CPU's integer products saturate (`LayerBits.for_any_cpu`)."""
    power_of_two: bool = False
    """Activation scales are powers of two, weight scales have short mantissas, and every sum is proven exact
    (`exact.freeze`): every layer of the network has to be quantized."""

    def __post_init__(self) -> None:
        if self.signals is not None and not MIN_BITS <= self.signals <= MAX_BITS:
            raise UsageError(f"no signals of {self.signals} bits", fix=f"widths are {MIN_BITS} to {MAX_BITS} bits")
        if self.symmetric and self.free:
            raise UsageError("symmetric grids that are free", why="the one has zero in its middle, the other nowhere")
        if self.signals is not None and self.free:
            raise UsageError("free grids with signals", why="sums of codes need zero on the grid")
        if not self.power_of_two:
            return
        if self.free:
            raise UsageError("free grids in profile exact", why="a free grid's levels are no multiples of its scale")
        widths = {"head": self.head, "body end": self.body_end, "tail": self.tail, **self.overrides}
        if left := [place for place, bits in widths.items() if bits is None]:
            raise UsageError(
                "a float layer in profile exact",
                why=f"{', '.join(left)} left float, and float sums round",
                fix="give it a width of up to 8",
            )

    @classmethod
    def deploy(cls, body: LayerBits, **others: Any) -> QuantizationPolicy:
        """Everything but the first layer, at 8 bits where nothing is said.

        Args:
            body: widths of the body.
            others: further fields.

        Raises:
            UsageError: fields that contradict each other.
        """
        regions: dict[str, Any] = dict.fromkeys(("body_end", "tail"), LayerBits(8, 8))
        return cls(body, **{**regions, **others})

    @classmethod
    def integer(cls, body: LayerBits, **others: Any) -> QuantizationPolicy:
        """The same, with 8-bit signals between the layers.

        Args:
            body: widths of the body.
            others: further fields.

        Raises:
            UsageError: fields that contradict each other.
        """
        return cls.deploy(body, **{"signals": MAX_BITS, **others})

    @classmethod
    def engine(cls, body: LayerBits, **others: Any) -> QuantizationPolicy:
        """The same for TensorRT: grids and signals that its convolutions take without any kernel between them.

        Args:
            body: widths of the body.
            others: further fields.

        Raises:
            UsageError: fields that contradict each other.
        """
        return cls.integer(body, **{"fused": True, **others, "symmetric": True})

    @classmethod
    def exact(cls, body: LayerBits, **others: Any) -> QuantizationPolicy:
        """What a model needs to be exact: power-of-two scales, and 8 bits for regions of which nothing is said.

        Args:
            body: widths of the body.
            others: further fields.

        Raises:
            UsageError: a layer left float, or free grids.
        """
        regions: dict[str, Any] = dict.fromkeys(("body_end", "tail", "head"), LayerBits(8, 8))
        return cls(body, **{**regions, **others}, power_of_two=True)

    @classmethod
    def exact_integer(cls, body: LayerBits, **others: Any) -> QuantizationPolicy:
        """The same, with 8-bit signals between the layers.

        Args:
            body: widths of the body.
            others: further fields.

        Raises:
            UsageError: a layer left float, or free grids.
        """
        return cls.exact(body, **{"signals": MAX_BITS, **others})

    @classmethod
    def parse(
        cls,
        profile: str,
        body: str,
        *,
        body_end: str | None = None,
        tail: str | None = None,
        head: str | None = None,
        overrides: Mapping[str, str] | None = None,
        per_channel: bool = True,
        free: bool = False,
        symmetric: bool = False,
        any_cpu: bool = False,
    ) -> QuantizationPolicy:
        """The policy that a profile of `PROFILES` makes of widths as `LayerBits.parse` reads them.

        The other arguments are the fields; None leaves a region as the profile has it.

        Raises:
            UsageError: no such profile or width, a float body, or what the profile does not allow.
        """
        if profile not in PROFILES:
            raise UsageError(f"no profile {profile!r}", fix=f"known are {', '.join(PROFILES)}")
        bits = LayerBits.parse(body)
        if bits is None:
            raise UsageError("a float body quantizes nothing", fix="give a width such as 4, or w4a8")
        regions = {"body_end": body_end, "tail": tail, "head": head}
        return PROFILES[profile](
            bits,
            **{region: LayerBits.parse(width) for region, width in regions.items() if width is not None},
            overrides={pattern: LayerBits.parse(width) for pattern, width in (overrides or {}).items()},
            per_channel=per_channel,
            free=free,
            symmetric=symmetric,
            any_cpu=any_cpu,
        )

    def select(self, network: SuperResolutionNetwork) -> dict[str, LayerBits]:
        """Widths of every layer of `network` to quantize, by dotted name, in network order.

        Raises:
            UsageError: an override that matches no layer, or nothing left to quantize.
        """
        by_region = {
            Region.HEAD: self.head,
            Region.BODY: self.body,
            Region.BODY_END: self.body_end,
            Region.TAIL: self.tail,
        }
        names = quantizable_layers(network)
        chosen: dict[str, LayerBits | None] = {name: by_region[network.region_of(name)] for name in names}
        for pattern, bits in self.overrides.items():
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise UsageError(
                    f"--layer {pattern} matches nothing", why=f"layers are {', '.join(names[:4])} ... {names[-1]}"
                )
            chosen.update(dict.fromkeys(matched, bits))
        selected = {name: bits for name, bits in chosen.items() if bits is not None}
        if not selected:
            raise UsageError("the policy quantizes nothing", **_why_nothing(network, names))
        return {name: bits.for_any_cpu() for name, bits in selected.items()} if self.any_cpu else selected


def _why_nothing(network: SuperResolutionNetwork, names: Sequence[str]) -> dict[str, str]:
    """Why no layer has a width, by the layers' names, and what to do; parts of an error."""
    if not names:
        return {"why": "the network has no layer that could be quantized"}
    regions: dict[Region, list[str]] = {}
    for name in names:
        regions.setdefault(network.region_of(name), []).append(name)
    meant = {
        Region.HEAD: "the first layer",
        Region.BODY: "the body",
        Region.BODY_END: "behind the body",
        Region.TAIL: "the last layer, and those that run on enlarged features, be it on small ones, too",
    }
    found = [
        f"{', '.join(layers[:4])}{' ..' if layers[4:] else ''} ({meant[region]})" for region, layers in regions.items()
    ]
    fix = "--profile deploy quantizes all but the first layer"
    if Region.TAIL in regions:
        fix += f"; --layer {regions[Region.TAIL][0]}=8 a single one"
    return {"why": f"every layer is set to float: {'; '.join(found)}", "fix": fix}


PROFILES: Mapping[str, Callable[..., QuantizationPolicy]] = {
    "paper": QuantizationPolicy,
    "deploy": QuantizationPolicy.deploy,
    "integer": QuantizationPolicy.integer,
    "engine": QuantizationPolicy.engine,
    "exact": QuantizationPolicy.exact,
    "exact-integer": QuantizationPolicy.exact_integer,
}
"""Each makes a policy of the body's widths and further fields."""


def quantizable_layers(network: nn.Module) -> list[str]:
    """Dotted names of all Conv2d and Linear layers that one static grid can serve, in network order."""
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return [name for name in names if not isinstance(network, SuperResolutionNetwork) or network.can_quantize(name)]
