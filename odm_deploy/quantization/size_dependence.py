"""Whether what layers read depends on how large the image is: ranges that were seen at one size are then for that one.

Averages over the whole image do not depend on it, nor do features brought to a mean of 0 and a deviation of 1. But such
of length 1 are half as large in an image of twice the height and width, where nothing else has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from odm_deploy.errors import OdmError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.foreign import PROBE_PX
from odm_deploy.networks.running import run_network
from odm_deploy.quantization.layers import QuantizedLayer

_TIMES = 1.5
"""Beyond it values do not merely differ by the image's edges, of which a larger one has fewer."""


_found: WeakKeyDictionary[SuperResolutionNetwork, dict[str, float]] = WeakKeyDictionary()
"""What was found of each network, which several parts of a program ask for."""


def depends_on_size(network: SuperResolutionNetwork, image: Tensor) -> dict[str, float]:
    """`size_dependent`, found once a network; empty for this project's own, and where it does not run at those sizes.

    Ranges of such a network hold near the size of the images they were seen on, and parts of them say nothing.
    """
    if not network.is_foreign:
        return {}
    if network not in _found:
        try:
            _found[network] = size_dependent(network, image)
        except OdmError:
            # Where that matters, somebody else says so.
            return {}
    return _found[network]


def size_dependent(network: SuperResolutionNetwork, image: Tensor) -> dict[str, float]:
    """Layers whose inputs are of another size in an image twice as high and wide, and how many times as large.

    The larger image is the smaller one and its mirrors: a layer that sees a part of it meets what it met before.

    Args:
        network: in float.
        image: float32 [1, 3, H, W] in 0..255; its middle is used.

    Raises:
        UsageError, InputError: the network does not run at one of the two sizes.
    """
    height, width = PROBE_PX
    top, left = (max(size - part, 0) // 2 for size, part in zip(image.shape[2:], PROBE_PX, strict=True))
    small = image[:, :, top : top + height, left : left + width]
    while small.shape[2] < height or small.shape[3] < width:
        small = _mirrored(small)[:, :, :height, :width]
    before, after = (_sizes(network, each) for each in (small, _mirrored(small)))
    times = {name: after[name] / size for name, size in before.items() if size > 0 and name in after}
    return {name: ratio for name, ratio in times.items() if not 1 / _TIMES < ratio < _TIMES}


def _mirrored(image: Tensor) -> Tensor:
    wide = torch.cat([image, image.flip(3)], 3)
    return torch.cat([wide, wide.flip(2)], 2)


def _sizes(network: SuperResolutionNetwork, image: Tensor) -> dict[str, float]:
    """The root mean square of what each layer reads, by name."""
    found: dict[str, float] = {}

    def watched_as(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs:
                found.setdefault(name, float(inputs[0].detach().double().square().mean().sqrt()))

        return watch

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, QuantizedLayer)):
                hooks.enter_context(layer.register_forward_pre_hook(watched_as(name)))
        run_network(network, image)
    return found
