"""Cross-layer equalization: channels of one tensor brought to like widths by scaling weights, at no cost when running.

A tensor has one grid, whose step is set by its widest channel. Where channels may be scaled (`networks.channels`), the
convolutions that write a channel take over a factor and those that read it give it back (Nagel et al., Data-Free
Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1). `equalization` does the same for
one layer's input by a multiplication in front of its quantizer; but between codes nothing can be multiplied, and a
residual stream is added to all along the network.

What evens out activations makes weights uneven, whose step is set by the largest one of an output channel. So factors
are a compromise, weight range^beta / activation range^alpha, and channels that meet in a tensor have the exponents with
which the layers that read them are expected to err least:

    E = step_x^2 / 12 * sum_c |W_c|^2 / g_c^2  +  share * sum_o step_w,o^2 / 12 * sum_c E[x_c^2] * g_c^2

both steps being those that the factors g lead to. Where a convolution's output lies on a grid of its own, because
something else than one layer reads it, its step adds another term like the first. Factors are powers of 2^(1/8), or of
two where float arithmetic is not to change by a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.channels import Indices, ScalableChannels, scalable_channels
from odm_deploy.networks.running import run_network
from odm_deploy.quantization.policy import LayerBits

EXPONENTS = ((0.0, 0.0), (0.35, 0.0), (0.5, 0.5), (0.5, 0.0), (0.7, 0.3), (0.7, 0.0), (0.85, 0.15), (1.0, 0.0))
"""(alpha, beta) that are tried."""
ROUNDING_LEFT = 0.15
"""Share of the weights' error that adaptive rounding leaves, as in `reconstruction`."""
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
    bits: Mapping[str, LayerBits],
    grids: Mapping[str, str] = {},
    outputs: Mapping[str, bool] = {},
    *,
    power_of_two: bool = False,
) -> dict[str, list[int]]:
    """Even out the channels between the convolutions of a float network, in place.

    Args:
        network: computes the same as before.
        parts: parts of images, float32 [N, 3, H, W] in 0..255, to see channels on.
        bits: widths of the layers that will be quantized.
        grids: layer -> name of the grid that its input will lie on, where several share one.
        outputs: convolution whose output will lie on a grid of its own -> whether that grid starts at zero.
        power_of_two: factors are powers of two, and the network computes the same bits.

    Returns:
        What `scale_channels` needs to do the same to another copy: the factors of each convolution's output channels,
        as exponents of 2^(1/8), where any differs from 1.
    """
    channels = scalable_channels(network)
    readers, written = _seen(network, parts, channels, bits, grids, outputs)
    step = PER_OCTAVE if power_of_two else 1
    exponents = step * np.round(np.log2(_best_factors(channels, readers, written)) * PER_OCTAVE / step)
    # Nobody may scale those of set 0.
    exponents[0] = 0.0
    channels.scaled(network, np.exp2(exponents / PER_OCTAVE))
    of_outputs = {name: exponents[sets].astype(int).tolist() for name, sets in channels.writes.items()}
    return {name: found for name, found in of_outputs.items() if any(found)}


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


@dataclass
class _Reader:
    """A layer that will be quantized, and its input's channels."""

    grid: str
    sets: Indices
    """[C]."""
    width: Array
    """Of each channel, [C]."""
    power: Array
    """Mean square of each channel, [C]."""
    weight: Array
    """Absolute values [O, C, k]; zeros where a group does not read a channel."""
    bits: LayerBits

    @property
    def output_power(self) -> float:
        """Mean square of its output, summed over channels, as if inputs were independent."""
        return max(float((np.square(self.weight).sum((0, 2)) * self.power).sum()), np.finfo(float).tiny)

    def error(self, factors: Array, widest: float) -> float:
        """Mean squared error of its output, relative to the output's power.

        Args:
            factors: of each channel, [C].
            widest: width of what lies on its grid, with their factors.
        """
        scaled = self.weight / factors[:, None]
        step_x = 2.0 * widest / (2**self.bits.activation - 1)
        step_w = scaled.max((1, 2)) / max(2 ** (self.bits.weight - 1) - 1, 1)
        of_input = step_x**2 / 12 * np.square(scaled).sum()
        of_weights = np.square(step_w).sum() / 12 * self.weight.shape[2] * (self.power * factors**2).sum()
        return float((of_input + ROUNDING_LEFT * of_weights) / self.output_power)


@dataclass
class _Written:
    """The output of a convolution that will lie on a grid of its own."""

    sets: Indices
    """[O]."""
    width: Array
    """Of each channel, [O]."""
    bits: int

    def error(self, factors: Array, reach: Array) -> float:
        """Mean squared error that its rounding causes where it is read, relative to the power of what is there.

        Args:
            factors: of each channel, [O].
            reach: by how much a channel's error counts there, [O].
        """
        step = 2.0 * (self.width * factors).max(initial=0.0) / (2**self.bits - 1)
        return float(step**2 / 12 * (reach / factors**2).sum())


def _best_factors(channels: ScalableChannels, readers: Sequence[_Reader], written: Sequence[_Written]) -> Array:
    """The factor of each set of channels, float64 [count]."""
    read, weight = (_relative(channels, readers, what) for what in ("width", "weight"))
    either = read.copy()
    for each in written:
        np.maximum.at(either, each.sets, each.width / max(each.width.max(initial=0.0), np.finfo(float).tiny))
    reach = np.zeros(channels.count)
    for reader in readers:
        np.maximum.at(reach, reader.sets, np.square(reader.weight).sum((0, 2)) / reader.output_power)
    tied = _tied(channels, readers)
    best, least = np.ones(channels.count), np.full(channels.count, np.inf)
    for (alpha, beta), width in itertools.product(EXPONENTS, (read, either)):
        factors = weight**beta / width**alpha
        factors[0] = 1.0
        widest: dict[str, float] = {}
        for reader in readers:
            found = float((reader.width * factors[reader.sets]).max(initial=np.finfo(float).tiny))
            widest[reader.grid] = max(widest.get(reader.grid, 0.0), found)
        error = np.zeros(channels.count)
        for reader in readers:
            error[tied[reader.sets.max()]] += reader.error(factors[reader.sets], widest[reader.grid])
        for each in written:
            error[tied[each.sets.max()]] += each.error(factors[each.sets], reach[each.sets])
        better = error[tied] < least
        best[better], least[better] = factors[better], error[tied][better]
    return best


def _relative(channels: ScalableChannels, readers: Sequence[_Reader], what: str) -> Array:
    """How wide each set's channels are, or what they are multiplied by, relative to the largest on a reader's grid.

    1 for sets that nobody reads.
    """
    largest: dict[str, float] = {}
    found: list[tuple[_Reader, Array]] = []
    for reader in readers:
        values = reader.width if what == "width" else reader.weight.max((0, 2))
        found.append((reader, values))
        largest[reader.grid] = max(largest.get(reader.grid, np.finfo(float).tiny), float(values.max(initial=0.0)))
    relative = np.zeros(channels.count)
    for reader, values in found:
        np.maximum.at(relative, reader.sets, values / largest[reader.grid])
    relative[np.setdiff1d(np.arange(channels.count), np.concatenate([reader.sets for reader in readers] or [[]]))] = 1.0
    return np.maximum(relative, 2.0**-LARGEST_OCTAVES)


def _tied(channels: ScalableChannels, readers: Sequence[_Reader]) -> Indices:
    """For each set the first one of those that have to have its exponents, because they meet in a tensor: [count]."""
    tied = np.arange(channels.count)
    for reader in readers:
        # Set 0 ties nothing.
        met = np.unique(tied[reader.sets[reader.sets > 0]])
        if len(met) > 1:
            tied[np.isin(tied, met)] = met[0]
    return tied


@torch.no_grad()
def _seen(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    channels: ScalableChannels,
    bits: Mapping[str, LayerBits],
    grids: Mapping[str, str],
    outputs: Mapping[str, bool],
) -> tuple[list[_Reader], list[_Written]]:
    """What reads the network's channels, and what writes them onto grids, after looking at some images."""
    widths: dict[str, Array] = {}
    powers: dict[str, list[Array]] = {}
    written: dict[str, Array] = {}

    def reading(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            widths[name] = np.maximum(widths.get(name, 0.0), _channel_widths(inputs[0]))
            powers.setdefault(name, []).append(inputs[0].square().mean((0, 2, 3)).double().numpy())

        return hook

    def writing(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found = _channel_widths(output.clamp(min=0.0) if outputs[name] else output)
            written[name] = np.maximum(written.get(name, 0.0), found)

        return hook

    with ExitStack() as hooks:
        for name in channels.reads:
            module = network.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(reading(name)))
            if name in outputs:
                hooks.enter_context(module.register_forward_hook(writing(name)))
        for part in parts:
            run_network(network, part)
    readers = [
        _Reader(
            grids.get(name, name),
            channels.reads[name],
            widths[name],
            np.mean(powers[name], 0),
            _dense(network.get_submodule(name)),
            bits[name],
        )
        for name in channels.reads
        if name in bits and name in widths
    ]
    return readers, [_Written(channels.writes[name], width, MAX_BITS) for name, width in written.items()]


def _channel_widths(x: Tensor) -> Array:
    """How wide each channel of [N, C, H, W] is, but for its outermost values: [C]."""
    values = x.transpose(0, 1).flatten(1).abs()
    beyond = max(int(values.shape[1] * _TAIL), 1)
    return values.topk(beyond, dim=1).values[:, -1].double().numpy()


def _dense(conv: nn.Module) -> Array:
    """Absolute weights of a convolution as [O, C, k], zero where its groups read nothing."""
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().abs().double().flatten(2).numpy()
    outputs, inputs = len(weight) // conv.groups, weight.shape[1]
    dense = np.zeros((len(weight), inputs * conv.groups, weight.shape[2]))
    for group in range(conv.groups):
        rows, columns = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
        dense[rows, columns] = weight[rows]
    return dense
