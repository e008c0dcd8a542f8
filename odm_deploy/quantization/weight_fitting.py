"""Weight codes and biases of all layers of a network.

Fitted on what the quantized layers before it hand on (`sequential`), a layer takes back what can be foretold of their
errors. What rounding signals or few bits add is noise, which cannot: weights fitted to it shrink, as in any regression
on noisy inputs. In a chain of layers that is right, since the noise of one layer passes through the next. Along a
residual stream it is not: the noise stays, and what blocks add to the stream gets less. Nothing tells beforehand which
of the two a network is more like. So layers are fitted to quantized and to float inputs, and of these two and the
nearest codes the model is taken whose output is closest to the float network's, on pixels that nothing was fitted to:
on its own pixels a fit to quantized inputs looks up to a decibel better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import run_network
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.exact.integer_products import integer_products
from odm_deploy.quantization.exact.sums import with_sums_kept_exact
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.patches import LayerPatches, layer_patches
from odm_deploy.quantization.reconstruction import fit_weights, float_outputs
from odm_deploy.quantization.sequential import fit_in_sequence
from odm_deploy.quantization.two_at_once import two_at_once


@torch.no_grad()
def fit_all_weights(
    network: SuperResolutionNetwork,
    parts: Sequence[Tensor],
    unseen: Sequence[Tensor],
    layers: Mapping[str, FrozenLayer],
    signals: Mapping[str, Grid],
    exact: Mapping[str, FrozenLayer] | None,
    track: Track = untracked,
    *,
    in_sequence: bool = True,
    round_weights: bool = True,
    correct_bias: bool = True,
) -> dict[str, FrozenLayer]:
    """Every layer with the weight codes and the bias that its output likes best; scales and grids stay.

    Args:
        network: the float network.
        parts: parts of images, float32 [N, 3, H, W] in 0..255, to fit layers to.
        unseen: others, to choose by.
        layers: with their grids and offsets chosen.
        signals: grids of tensors between layers.
        exact: the same layers on scales that make sums exact, which stay so; None where they are not.
        track: for a progress bar.
        in_sequence: off fits each layer to what arrives at it in the float network, and nothing else is tried.
        round_weights: off keeps the nearest codes.
        correct_bias: off keeps biases.
    """

    def fit(
        layer: FrozenLayer, patches: LayerPatches, arrived: Tensor, outputs: Sequence[Tensor] | None = None
    ) -> FrozenLayer:
        found = fit_weights(layer, patches, arrived, outputs, round_weights=round_weights, correct_bias=correct_bias)
        return found if exact is None else with_sums_kept_exact(found, exact[patches.name])

    if not in_sequence:
        stream = layer_patches(network, parts, list(layers), partial(track, stage="rounding"), extremes=False)
        with two_at_once():
            apart = {patches.name: fit(layers[patches.name], patches, patches.inputs) for patches in stream}
        # In network order again.
        return {name: apart[name] for name in layers}
    apart: dict[str, FrozenLayer] = {}
    outputs: dict[str, list[Tensor]] = {}

    def fit_apart(patches: LayerPatches) -> None:
        layer = layers[patches.name]
        outputs[patches.name] = float_outputs(layer, patches)
        apart[patches.name] = fit(layer, patches, patches.inputs, outputs[patches.name])

    def fit_in_place(layer: FrozenLayer, patches: LayerPatches, arrived: Tensor) -> FrozenLayer:
        return fit(layer, patches, arrived, outputs.pop(patches.name))

    told = partial(track, stage="rounding")
    # What the float network computes for both is the same.
    with two_at_once():
        chained = fit_in_sequence(network, parts, layers, fit_in_place, signals, told, ahead_of_it=fit_apart)
    apart = {name: apart[name] for name in layers}
    expected = [run_network(network, part) for part in unseen]

    def distance(candidate: Mapping[str, FrozenLayer]) -> float:
        model = freeze(network, candidate, signals=signals)
        with integer_products(model):
            return sum(
                float((model(part) - wanted).square().mean()) for part, wanted in zip(unseen, expected, strict=True)
            )

    candidates = (dict(layers), apart, chained)
    return min(track(candidates, len(candidates), "comparing these with the nearest codes"), key=distance)
