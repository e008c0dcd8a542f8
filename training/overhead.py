"""What a method adds to a network's storage and bit operations: offsets, gates, statistics of each image.

`odm_deploy.accounting` counts codes, ranges and products of layers, which are the same for every method. Here is the
rest, in its convention: BitOPs = 2 * MAC * b_w * b_a, half of that for a multiplication alone, nothing for additions,
maxima and means.

It reproduces what the ODM papers print for EDSR-baseline x4 at two bits (411.7 K words and 215.1 T without):

- DDTB 413.4 K: gates on 9 of 32 layers, each 64*32 + 32*2 weights of 2 bits and a scale and shift for 32 channels, 196
  words. Their products are a few thousand an image.
- DAQ 215.6 T: one float multiply-add per value that is quantized, 32 layers * 64 * 480 * 270 * 2 * 32 * 32 = 0.54 T.
  That is the variance; dividing by it would be as much again, and the paper's figure has no room for it.
- ODM v1's offsets + 0.01 T: ten gains of 4 bits, 10 * 64 * 480 * 270 * 4 * 32 = 0.011 T. The + 0.08 K beside it are
  ten vectors, 10 * 64 * 4 / 32 = 80 words. The text has twenty, a shift and a gain each for 30 % of the layers, which
  is 0.16 K: the two figures do not count the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from odm_deploy.accounting import FLOAT_BITS, Accounting, Convention, LayerCost, count_macs
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.policy import QuantizationPolicy
from training.methods.base import Method
from training.model import TrainableModel

_PROBE = (2, 3, 24, 24)


@dataclass(frozen=True)
class OverheadCost(LayerCost):
    """What a quantizer does besides rounding, which is no product of a layer."""

    operations: int = 0
    """Bit operations for one image."""

    @property
    def bit_operations(self) -> int:
        """`operations`."""
        return self.operations


def with_overhead(cost: Accounting, model: TrainableModel, convention: Convention) -> Accounting:
    """`cost`, and what the quantizers of `model` add to it, one entry a layer that has something of the kind."""
    return replace(cost, layers=(*cost.layers, *_overheads(model, cost.output_px, convention)))


def _overheads(model: TrainableModel, output_px: tuple[int, int], convention: Convention) -> Iterator[LayerCost]:
    macs = count_macs(model.float_network(), output_px)
    for name, layer in model.layers.items():
        # Each weight is used once a pixel.
        added = layer.activation.overhead(macs[name] // layer.weight.numel())
        storage = added.storage_bits + (FLOAT_BITS * added.scales if convention == "honest" else 0)
        if storage or added.bit_operations:
            kind, widths = type(layer.activation).__name__, (FLOAT_BITS, FLOAT_BITS)
            yield OverheadCost(f"{name}.activation", kind, 0, *widths, storage, added.bit_operations)


def calibrated_on_noise(
    network: SuperResolutionNetwork, policy: QuantizationPolicy, method: Method[Any]
) -> TrainableModel:
    """`network` with the method's quantizers after one batch of noise, to count what they add before any training.

    How many layers have offsets or gates is then what it will be; which ones depends on trained features. That makes a
    difference where layers differ in size (RDN).
    """
    model = TrainableModel.attach(network, policy.select(network), method)
    noise = torch.rand(_PROBE, generator=torch.Generator().manual_seed(1)) * 255
    model.calibrate(iter([noise]))
    method.initialize(model)
    return model
