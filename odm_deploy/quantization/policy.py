"""Quantization policies: which layers are quantized, with how many bits and what kind of scales.

The default is the papers' region: the body's convolutions (and linears), all at the same width; head, body end and tail
stay float. Each of those can be added at a width of its own, and any layer overridden by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

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


@dataclass(frozen=True)
class QuantizationPolicy:
    """What to quantize and how; see the fields."""

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
    power_of_two: bool = False
    """Activation scales are powers of two, weight scales have short mantissas, and every sum is proven exact
    (`exact_freeze`): every layer of the network has to be quantized."""

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
            raise UsageError("the policy quantizes nothing", why="every layer is set to float")
        return selected


def quantizable_layers(network: nn.Module) -> list[str]:
    """Dotted names of all Conv2d and Linear layers that one static grid can serve, in network order."""
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return [name for name in names if not isinstance(network, SuperResolutionNetwork) or network.can_quantize(name)]
