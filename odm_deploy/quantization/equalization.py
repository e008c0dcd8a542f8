"""Channel equalization: a factor per input channel, in front of the quantizer, that is divided out of the weights.

A layer's input has one grid for all channels, and its step is set by the widest of them: a channel a tenth as wide is
left with a tenth of the codes. Multiplying channel c by a gain g_c before the quantizer and dividing the weights that
read it by g_c changes nothing in float and evens the channels out (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019; Xiao et al., SmoothQuant, ICML 2023). It is what the ODM papers call the
channel-wise mismatch, cured without training. In the lowered graph it is one Mul by a constant, which engines fold into
the quantizer.

Evening out activations entirely moves their unevenness into the weights, whose grid is shared by all input channels,
too. So the gain is a compromise,

    g_c = weight range_c^beta / activation range_c^alpha

and `reconstruction` takes the exponents with which a layer's output has the smallest error.

Where nothing is padded, as in 1x1 convolutions and linear layers, channels can be centred, too: a shift before the
gain, and a bias that takes it back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odm_deploy.quantization.layers import ChannelOffsets
from odm_deploy.quantization.patches import LayerPatches

EXPONENTS = ((0.5, 0.5), (0.7, 0.3), (0.85, 0.15), (1.0, 0.0))
"""(alpha, beta) that are tried."""
_LARGEST_SPREAD = 1e3
"""Channels narrower than the widest one by more than this share its gain's bound: dead channels have no range."""


def channel_offsets(patches: LayerPatches, alpha: float, beta: float, *, shifted: bool) -> ChannelOffsets:
    """Gains float32 [C], all > 0, the smallest 1, for the input channels of one layer; `shifted`: centred first."""
    extremes, kernel = patches.extremes, patches.kernel_size
    shift = None
    if shifted:
        shift = -(extremes.amin(1) + extremes.amax(1)) / 2
        extremes = extremes + shift[:, None]
    activation = extremes.abs().amax(1)
    # [G, O/G, C/G * k] -> [C]
    weight = patches.weight.unflatten(2, (-1, kernel)).abs().amax((1, 3)).flatten()
    gain = _bounded(weight) ** beta / _bounded(activation) ** alpha
    return ChannelOffsets(shift, gain / gain.min())


def offset_inputs(inputs: Tensor, patches: LayerPatches, offsets: ChannelOffsets | None) -> Tensor:
    """Patches [G, N, K] as they reach the quantizer: (x + shift) * gain."""
    if offsets is None:
        return inputs
    if offsets.shift is not None:
        inputs = inputs + patches.per_value(offsets.shift)
    return inputs if offsets.gain is None else inputs * patches.per_value(offsets.gain)


def offset_extremes(patches: LayerPatches, offsets: ChannelOffsets | None) -> Tensor:
    """The channels' extreme values [C, n] as they reach the quantizer."""
    extremes = patches.extremes
    if offsets is None:
        return extremes
    if offsets.shift is not None:
        extremes = extremes + offsets.shift[:, None]
    return extremes if offsets.gain is None else extremes * offsets.gain[:, None]


def offset_weights(patches: LayerPatches, offsets: ChannelOffsets | None) -> tuple[Tensor, Tensor | None]:
    """Weights [G, O/G, K] and bias [O] that compute from offset inputs what the layer computes from plain ones."""
    weight, bias = patches.weight, patches.bias
    if offsets is None:
        return weight, bias
    if offsets.shift is not None:
        moved = (weight.double() * patches.per_value(offsets.shift)).sum(2).flatten()
        bias = ((0.0 if bias is None else bias.double()) - moved).float()
    return weight if offsets.gain is None else weight / patches.per_value(offsets.gain), bias


def _bounded(ranges: Tensor) -> Tensor:
    """Ranges none of which is more than `_LARGEST_SPREAD` below the largest; all 1 where all are zero."""
    largest = ranges.max()
    return ranges.clamp(min=float(largest) / _LARGEST_SPREAD) if largest > 0 else torch.ones_like(ranges)
