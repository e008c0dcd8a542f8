"""Layers fitted one after the other, each on what the quantized layers before it really hand on.

A layer that is fitted on the float network's activations learns nothing of the errors in front of it. Here the
quantized network runs once over all parts of the images, and each layer is fitted the moment its input arrives: it has
to give the float layer's output from the quantized network's input, and so takes back what can be foretold of the
errors before it, above all those of rounded weights (the asymmetric reconstruction of Nagel et al., Up or Down?
Adaptive Rounding for Post-Training Quantization, ICML 2020, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.exact.integer_products import integer_products
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.patches import AllSeen, LayerPatches, batch_of, layer_patches, rows_of

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
    *,
    ahead_of_it: Callable[[LayerPatches], None] | None = None,
) -> dict[str, FrozenLayer]:
    """All layers, fitted in the order in which they run.

    Args:
        network: the float network; left as it is.
        parts: parts of images, float32 [N, 3, H, W] in 0..255.
        layers: as calibrated so far, by dotted name.
        fit: fits one of them.
        signals: grids of tensors between layers, as `freeze` takes them.
        track: for a progress bar over the layers.
        ahead_of_it: what else is to be done with the float network's patches, in the thread that makes them: while a
            layer is fitted, it is done for the next one.

    Returns:
        The layers by name, in the order of `layers`. Those that run several times saw the float network's patches in
        both places, since what the later runs read depends on the layer itself.
    """
    images = batch_of(parts, network)
    model = freeze(network, layers, signals=signals)
    fitted: dict[str, FrozenLayer] = {}
    ahead: dict[str, LayerPatches] = {}

    def patches_of(name: str) -> LayerPatches:
        # Those of a layer that runs again later come only then.
        while name not in ahead:
            found = next(stream)
            ahead[found.name] = found
        return ahead.pop(name)

    def arriving_at(layer: QuantizedLayer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if layer.name in fitted:
                return
            patches = patches_of(layer.name)
            once = patches.runs == 1
            arrived = rows_of(network.get_submodule(layer.name), inputs[0]) if once else patches.inputs
            found = fitted[layer.name] = fit(layers[layer.name], patches, arrived)
            layer.codes.copy_(found.weight.codes)
            if layer.bias is not None and found.bias is not None:
                layer.bias.copy_(found.bias)
            if len(fitted) == len(layers):
                raise AllSeen

        return hook

    with ExitStack() as cleanup:
        patches = layer_patches(network, parts, list(layers), track, extremes=False, prepare=ahead_of_it)
        stream = cleanup.enter_context(closing(patches))
        for layer in model.layers.values():
            cleanup.enter_context(layer.register_forward_pre_hook(arriving_at(layer)))
        # A layer multiplies only once its codes are fitted.
        with integer_products(model), suppress(AllSeen):
            model(images)
        # Ends the progress bar.
        assert next(stream, None) is None, "every layer was fitted"
    return {name: fitted[name] for name in layers}
