"""What a layer reads, as the rows of a matrix: its output error is then a matrix product away.

A convolution is a matrix product of the patches under its kernel. A few thousand patches from all over the calibration
images are enough to judge a grid or a rounding by the layer's output, and they are small: but hundreds of layers have
hundreds of inputs, so layers are taken in groups whose patches fit into `PATCHES_MIB`, and the float network runs once
for each group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Track, untracked

PATCHES = 4096
"""Patches of a layer, over all images."""
PATCHES_MIB = 512
"""What the patches of one group of layers may take."""


@dataclass
class LayerPatches:
    """Patches of one layer's input with the weights they meet; G groups of channels, one where nothing is said."""

    name: str
    """Dotted name of the layer."""
    inputs: Tensor
    """float32 [G, N, K]: N patches of K = channels of a group * kernel values, channel by channel."""
    weight: Tensor
    """float32 [G, O/G, K]."""
    bias: Tensor | None
    """float32 [O], or None."""
    kernel_size: int
    """Values of a kernel per channel: 1 of a linear layer, 9 of a 3x3 convolution."""
    takes_offsets: bool
    """Whether its channels can be scaled in front of the quantizer: a convolution's."""
    padded: bool
    """Whether zeros are padded, which a shift would move."""

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.inputs.shape[0] * self.inputs.shape[2] // self.kernel_size

    def per_value(self, channels: Tensor) -> Tensor:
        """Values per input channel [C] as [G, 1, K], to multiply inputs or weights with."""
        groups = self.inputs.shape[0]
        return channels.reshape(groups, 1, -1, 1).expand(-1, -1, -1, self.kernel_size).flatten(2)

    def grouped(self, weight: Tensor) -> Tensor:
        """A weight [O, ...] as [G, O/G, K]."""
        return weight.reshape(self.weight.shape)

    def output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Inputs [G, N, K] times weight [G, O/G, K]: [G, N, O/G], without the bias."""
        return inputs @ weight.transpose(1, 2)


@torch.no_grad()
def layer_patches(
    network: SuperResolutionNetwork, parts: Sequence[Tensor], names: Sequence[str], track: Track = untracked
) -> Iterator[LayerPatches]:
    """The patches of each layer, in order of `names`; those of a group are dropped before the next are taken.

    Args:
        network: the float network.
        parts: parts of images, float32 [N, 3, H, W] in 0..255.
        names: dotted names of Conv2d and Linear layers that run once.
        track: for a progress bar over the layers.
    """
    modules = dict(network.named_modules())
    yield from track(_in_groups(network, parts, [(name, modules[name]) for name in names]), len(names))


def _in_groups(
    network: SuperResolutionNetwork, parts: Sequence[Tensor], layers: list[tuple[str, nn.Module]]
) -> Iterator[LayerPatches]:
    waiting = list(layers)
    while waiting:
        group = [waiting.pop(0)]
        taken = _bytes_of(group[0][1])
        while waiting and taken + _bytes_of(waiting[0][1]) <= PATCHES_MIB * 2**20:
            taken += _bytes_of(waiting[0][1])
            group.append(waiting.pop(0))
        seen: dict[str, list[Tensor]] = {name: [] for name, _ in group}
        with ExitStack() as hooks:
            for name, layer in group:
                hooks.enter_context(layer.register_forward_pre_hook(_keeping(seen[name], PATCHES // len(parts))))
            for part in parts:
                network(part)
        while group:
            name, layer = group.pop(0)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            weight = layer.weight.detach().float()
            yield LayerPatches(
                name,
                torch.cat(seen.pop(name), 1),
                weight.reshape(groups, len(weight) // groups, -1),
                None if layer.bias is None else layer.bias.detach().float(),
                prod(weight.shape[2:]),
                isinstance(layer, nn.Conv2d),
                isinstance(layer, nn.Conv2d) and layer.padding != (0, 0),
            )


def rows_of(layer: nn.Module, x: Tensor, count: int) -> Tensor:
    """At most `count` patches of a layer's input, evenly spaced and equally many of each image: float32 [G, n, K]."""
    x = x.detach().float()
    if not isinstance(layer, nn.Conv2d):
        return _evenly(x.reshape(-1, 1, x.shape[-1]), count)
    padding = layer.padding
    assert not isinstance(padding, str), "quantized layers pad explicitly"
    # Image by image: all patches of one are many times what it takes itself.
    return torch.cat(
        [
            _evenly(
                F.unfold(image[None], layer.kernel_size, layer.dilation, padding, layer.stride)[0].T.unflatten(
                    1, (layer.groups, -1)
                ),
                count // len(x),
            )
            for image in x
        ],
        1,
    )


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows [n, G, K], as [G, count, K]."""
    chosen = torch.arange(min(count, len(rows))) * max(len(rows) // max(count, 1), 1)
    return rows[chosen].transpose(0, 1).contiguous()


def _keeping(seen: list[Tensor], count: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds `count` patches of a layer's input."""
    return lambda layer, inputs: seen.append(rows_of(layer, inputs[0], count))


def _bytes_of(layer: nn.Module) -> int:
    """What a layer's patches take, float32."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return 4 * PATCHES * groups * prod(layer.weight.shape[1:])
