"""What a layer reads, as the rows of a matrix: its output error is then a matrix product away.

A convolution is a matrix product of the patches under its kernel. A few thousand patches from all over the calibration
images are enough to judge a grid or a rounding by the layer's output, and they are small: but hundreds of layers have
hundreds of inputs. So the float network runs once, in step with whoever uses its patches, and memory holds those of two
or three layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import first_that_runs, run_network
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.in_step import in_step

PATCHES = (4096, 8192)
"""Fewest and most patches of a layer, over all images; as many of each time it runs."""
PATCH_VALUES = 8192 * 64 * 9
"""Values that they hold together, within those bounds: the more patches, the better weights fit what was not seen, but
of large layers 8192 take long."""
EXTREMES = 64
"""So many of the smallest and of the largest values of each channel are kept, each time the layer runs: patches miss
what is rare, and a grid chosen by patches may cut it off."""


class AllSeen(BaseException):
    """Ends a network's run behind the last layer that anything is done with: upsamplers are half of the work.

    No error, and nothing for an `except Exception` in somebody else's code.
    """


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
    padded: bool
    """Whether zeros are padded, which a shift would move."""
    runs: int
    """How often the layer runs for one image."""
    extremes: Tensor
    """float32 [C, n]: the smallest and the largest values of each channel, over all pixels; n is 0 where they were not
    asked for."""
    pixels: int
    """How many values of each channel those are the extremes of."""

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


def layer_patches(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    names: Sequence[str],
    track: Track = untracked,
    *,
    extremes: bool = True,
    prepare: Callable[[LayerPatches], None] | None = None,
) -> Generator[LayerPatches]:
    """The patches of each layer, in the order in which layers run for the last time.

    Args:
        network: the float network; it runs once over all parts, and waits while nobody takes what it has.
        parts: parts of images, float32 [N, 3, H, W] in 0..255; see `batch_of`.
        names: dotted names of Conv2d and Linear layers.
        track: for a progress bar over the layers.
        extremes: off where nobody needs the extreme values of channels, which take as long as the patches.
        prepare: called with a layer's patches before they are handed on, in the thread that makes them, while those of
            an earlier layer are used.
    """
    images = batch_of(parts, network)
    modules = dict(network.named_modules())
    runs = _runs(network, images[:1], names)

    # Gradients are on in every new thread.
    @torch.no_grad()
    def run(put: Callable[[LayerPatches], None]) -> None:
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        ends: dict[str, list[Tensor]] = {name: [] for name in names}

        def taken_from(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if name not in seen or inputs[0].is_meta:
                    # It runs once for each image of a batch, and the first had enough; or is tried without data.
                    return
                seen[name].append(rows_of(layer, inputs[0]))
                channels = inputs[0].shape[1 if isinstance(layer, nn.Conv2d) else -1]
                none = torch.zeros(channels, 0)
                ends[name].append(_extremes(_by_channel(layer, inputs[0]), EXTREMES) if extremes else none)
                if len(seen[name]) == runs[name]:
                    rows, found = (_joined(each.pop(name)) for each in (seen, ends))
                    pixels = runs[name] * (inputs[0].numel() // channels)
                    patches = _patches(name, layer, rows, runs[name], found, pixels)
                    if prepare is not None:
                        prepare(patches)
                    put(patches)
                if not seen:
                    raise AllSeen

            return hook

        with ExitStack() as hooks:
            for name in names:
                hooks.enter_context(modules[name].register_forward_pre_hook(taken_from(name)))
            with suppress(AllSeen):
                run_network(network, images)

    with closing(in_step(run)) as stream:
        yield from track(stream, len(names))


def batch_of(parts: Sequence[Tensor], network: SuperResolutionNetwork) -> Tensor:
    """The parts as one batch [N, 3, H, W]: of different sizes, the middle of those of at least the median's size.

    Somebody else's network may take one image at a time (`x.view(1, ...)`): it gets them one below the other, [1, 3,
    N * H, W], and where it takes but one size, the last of them.
    """
    height, width = (sorted(part.shape[axis] for part in parts)[len(parts) // 2] for axis in (2, 3))
    large = [part for part in parts if part.shape[2] >= height and part.shape[3] >= width]
    if not large:
        # As many are tall as are wide, but none is both.
        height = width = min(min(part.shape[2:]) for part in parts)
        large = list(parts)
    tops = [((part.shape[2] - height) // 2, (part.shape[3] - width) // 2) for part in large]
    middles = [
        part[..., top : top + height, left : left + width] for part, (top, left) in zip(large, tops, strict=True)
    ]
    if len(middles) == 1:
        return middles[0]
    return first_that_runs(network, (torch.cat(middles), torch.cat(middles, 2), middles[-1]))


@torch.no_grad()
def _runs(network: SuperResolutionNetwork, image: Tensor, names: Sequence[str]) -> Counter[str]:
    """How often each of these layers runs for one image."""
    runs: Counter[str] = Counter()
    modules = dict(network.named_modules())
    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(modules[name].register_forward_pre_hook(lambda *_, name=name: runs.update([name])))
        run_network(network, image)
    return runs


def _patches(name: str, layer: nn.Module, inputs: Tensor, runs: int, extremes: Tensor, pixels: int) -> LayerPatches:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().float()
    return LayerPatches(
        name,
        inputs,
        weight.reshape(groups, len(weight) // groups, -1),
        None if layer.bias is None else layer.bias.detach().float(),
        prod(weight.shape[2:]),
        isinstance(layer, nn.Conv2d) and layer.padding != (0, 0),
        runs,
        extremes,
        pixels,
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Of each time a layer ran [G, n, K], side by side; most layers run once, and nothing is copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _by_channel(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as [C, n]."""
    x = x.detach().float()
    return x.transpose(0, 1).flatten(1) if isinstance(layer, nn.Conv2d) else x.flatten(0, -2).T


def _extremes(values: Tensor, most: int) -> Tensor:
    """The smallest and the largest of values [C, n], at most so many of each."""
    count = min(most, values.shape[1])
    return torch.cat([values.topk(count, largest=largest).values for largest in (False, True)], 1)


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Some patches of a layer's input, evenly spaced and equally many of each image: float32 [G, n, K]."""
    x = x.detach().float()
    fewest, most = PATCHES
    count = min(max(PATCH_VALUES // layer.get_parameter("weight")[0].numel(), fewest), most)
    if not isinstance(layer, nn.Conv2d):
        return _evenly(x.reshape(-1, 1, x.shape[-1]), count)
    padding = layer.padding
    assert not isinstance(padding, str), "quantized layers pad explicitly"
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    # Where each patch of one image begins, and what it reads from there: all patches are many times the image itself.
    (height, row_step), (width, column_step) = (
        ((size - dilation * (kernel - 1) - 1) // stride + 1, stride)
        for size, kernel, stride, dilation in zip(
            x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    )
    chosen = _evenly_spaced(height * width, count // len(x))
    reach = [torch.arange(kernel) * by for kernel, by in zip(layer.kernel_size, layer.dilation, strict=True)]
    rows = (chosen // width * row_step)[:, None, None] + reach[0][:, None]
    columns = (chosen % width * column_step)[:, None, None] + reach[1]
    # Channel by channel last, values that stand side by side are taken together.
    starts = torch.arange(len(x))[:, None] * (x.shape[2] * x.shape[3])
    places = starts + (rows * x.shape[3] + columns).flatten()
    patches = x.permute(0, 2, 3, 1).flatten(0, 2)[places.flatten()]
    # [N*n*k*l, C] -> [G, N*n, C/G*k*l]
    by_patch = patches.reshape(-1, prod(layer.kernel_size), layer.groups, x.shape[1] // layer.groups)
    return by_patch.permute(2, 0, 3, 1).flatten(2).contiguous()


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows [n, G, K], as [G, count, K]."""
    return rows[_evenly_spaced(len(rows), count)].transpose(0, 1).contiguous()


def _evenly_spaced(total: int, count: int) -> Tensor:
    """Numbers of at most `count` of `total` things."""
    return torch.arange(min(count, total)) * max(total // max(count, 1), 1)
