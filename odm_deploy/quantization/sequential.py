"""Layers fitted one after the other, each on what the quantized layers before it really hand on.

A layer that is fitted on the float network's activations learns nothing of the errors in front of it. Here the
quantized network runs once over all parts of the images, and each layer is fitted the moment its input arrives: it has
to give the float layer's output from the quantized network's input, and so takes back what can be foretold of the
errors before it, above all those of rounded weights (the asymmetric reconstruction of Nagel et al., Up or Down?
Adaptive Rounding for Post-Training Quantization, ICML 2020, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.patches import PATCHES, LayerPatches, layer_patches, rows_of

Fit = Callable[[FrozenLayer, LayerPatches, Tensor], FrozenLayer]
"""A layer, the float network's patches of its input, and the quantized network's, [G, N, K]: the fitted layer."""


@torch.no_grad()
def fit_in_sequence(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    layers: Mapping[str, FrozenLayer],
    fit: Fit,
    signals: Mapping[str, Grid] | None = None,
    track: Track = untracked,
) -> dict[str, FrozenLayer]:
    """All layers, fitted in the order in which they run.

    Args:
        network: the float network; left as it is.
        parts: parts of images, float32 [N, 3, H, W] in 0..255.
        layers: as calibrated so far, by dotted name.
        fit: fits one of them.
        signals: grids of tensors between layers, as `freeze` takes them.
        track: for a progress bar over the layers.

    Returns:
        The layers by name, in the order of `layers`. Those that run several times saw the float network's patches in
        both places, since what the later runs read depends on the layer itself.
    """
    parts = [_batch(parts)]
    calls = _calls(network, parts[0], list(layers))
    order = list(dict.fromkeys(calls))
    waiting = layer_patches(network, parts, order, track)
    model = freeze(network, layers, signals=signals)
    fitted: dict[str, FrozenLayer] = {}

    def arriving_at(layer: QuantizedLayer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if layer.name in fitted:
                return
            patches = next(waiting)
            assert patches.name == layer.name, "both networks run their layers in the same order"
            once = calls.count(layer.name) == 1
            arrived = rows_of(network.get_submodule(layer.name), inputs[0], PATCHES) if once else patches.inputs
            found = fitted[layer.name] = fit(layers[layer.name], patches, arrived)
            layer.codes.copy_(found.weight.codes)
            if layer.bias is not None and found.bias is not None:
                layer.bias.copy_(found.bias)

        return hook

    with ExitStack() as hooks:
        for layer in model.layers.values():
            hooks.enter_context(layer.register_forward_pre_hook(arriving_at(layer)))
        model(parts[0])
    # Ends the progress bar.
    assert next(waiting, None) is None, "every layer was fitted"
    return {name: fitted[name] for name in layers}


def _batch(parts: Sequence[Tensor]) -> Tensor:
    """The parts as one batch [N, 3, H, W]: of different sizes, the middle of those of at least the median's size."""
    height, width = (sorted(part.shape[axis] for part in parts)[len(parts) // 2] for axis in (2, 3))
    large = [part for part in parts if part.shape[2] >= height and part.shape[3] >= width]
    if not large:
        # As many are tall as are wide, but none is both.
        height = width = min(min(part.shape[2:]) for part in parts)
        large = list(parts)
    tops = [((part.shape[2] - height) // 2, (part.shape[3] - width) // 2) for part in large]
    return torch.cat(
        [part[..., top : top + height, left : left + width] for part, (top, left) in zip(large, tops, strict=True)]
    )


def _calls(network: SuperResolutionNetwork, part: Tensor, names: Sequence[str]) -> list[str]:
    """Names of these layers in the order they run; one that runs twice is there twice."""
    calls: list[str] = []
    modules = dict(network.named_modules())
    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(modules[name].register_forward_pre_hook(lambda *_, name=name: calls.append(name)))
        network(part[:1])
    return calls
