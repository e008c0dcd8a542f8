"""Cross-layer equalization: channels of one tensor brought to one width by scaling weights, at no cost when running.

A tensor has one grid, whose step is set by its widest channel. Where channels may be scaled (`networks.channels`), the
convolutions that write a channel take over a factor and those that read it give it back (Nagel et al., Data-Free
Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1). `equalization` does the same for
one layer's input by a multiplication in front of its quantizer; but between codes nothing can be multiplied, and a
residual stream is added to all along the network.

Factors are powers of 2^(1/8), or of two where float arithmetic is not to change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.channels import ScalableChannels, scalable_channels

PER_OCTAVE = 8
"""Factors there are between one and two."""
LARGEST_OCTAVES = 6
"""Channels narrower than 2^-6 of the widest count as if they were not: dead ones have no range."""
_TAIL = 1e-3
"""Share of a channel's largest values that does not widen it."""

SCALED_CHANNELS = "scaled_channels"
"""Key of a model's metadata that holds what `equalize_channels` returned."""

Array = NDArray[np.float64]


def equalize_channels(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    grids: Mapping[str, str] = {},
    *,
    power_of_two: bool = False,
) -> dict[str, list[int]]:
    """Even out the channels between the convolutions of a float network, in place.

    Args:
        network: computes the same as before.
        parts: parts of images, float32 [N, 3, H, W] in 0..255, to see the width of channels on.
        grids: convolution -> name of the grid that its input will lie on, where several share one.
        power_of_two: factors are powers of two, and the network computes the same bits.

    Returns:
        What `scale_channels` needs to do the same to another copy: the factors of each convolution's output channels,
        as exponents of 2^(1/8), where any differs from 1.
    """
    channels = scalable_channels(network)
    widths = np.maximum(_widths(network, parts, channels, grids), 2.0**-LARGEST_OCTAVES)
    step = PER_OCTAVE if power_of_two else 1
    # No channel becomes wider than the widest.
    exponents = step * np.floor(-np.log2(widths) * PER_OCTAVE / step)
    # Nobody may scale those of set 0.
    exponents[0] = 0.0
    channels.scaled(network, np.exp2(exponents / PER_OCTAVE))
    written = {name: exponents[sets].astype(int).tolist() for name, sets in channels.writes.items()}
    return {name: found for name, found in written.items() if any(found)}


def scale_channels(network: SuperResolutionNetwork, exponents: Mapping[str, Sequence[int]]) -> None:
    """Do to a float network what `equalize_channels` did to another copy of it.

    Args:
        network: changed in place.
        exponents: as returned there.

    Raises:
        InputError: they are of another network.
    """
    if not exponents:
        return
    channels = scalable_channels(network)
    found = np.zeros(channels.count)
    for name, of_layer in exponents.items():
        if name not in channels.writes or len(channels.writes[name]) != len(of_layer):
            raise InputError("the model is not of this network", why=f"its {name} has {len(of_layer)} output channels")
        found[channels.writes[name]] = of_layer
    channels.scaled(network, np.exp2(found / PER_OCTAVE))


@torch.no_grad()
def _widths(
    network: SuperResolutionNetwork, parts: Sequence[Tensor], channels: ScalableChannels, grids: Mapping[str, str]
) -> Array:
    """How wide the channels of each set are, relative to the widest on the grids they are read from: float64 [count].

    1 for those that nobody reads.
    """
    seen: dict[str, Array] = {}

    def looking(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1).abs()
            beyond = max(int(values.shape[1] * _TAIL), 1)
            found = values.topk(beyond, dim=1).values[:, -1].double().numpy()
            seen[name] = np.maximum(seen.get(name, 0.0), found)

        return hook

    with ExitStack() as hooks:
        for name in channels.reads:
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(looking(name)))
        for part in parts:
            network(part)
    widths = np.full(channels.count, -1.0)
    widest: dict[str, float] = {}
    for name, found in seen.items():
        grid = grids.get(name, name)
        widest[grid] = max(widest.get(grid, np.finfo(float).tiny), found.max())
    for name, found in seen.items():
        np.maximum.at(widths, channels.reads[name], found / widest[grids.get(name, name)])
    return np.where(widths < 0, 1.0, widths)
