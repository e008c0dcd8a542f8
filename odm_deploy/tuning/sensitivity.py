"""How much each layer's quantization costs at the network's output: all layers in a single pass.

Quantizing layer i alone moves its output by d_i, and the network's output by J_i d_i, to first order. Running the
network once for each layer would take hours where there are hundreds. Instead, random signs v are sent backwards:

    E_v[(v^T J_i d_i)^2] = ||J_i d_i||^2                                       (Hutchinson, 1990)

and one backward pass gives v^T J_i for all layers at once. So the cost is that of some dozen runs on small parts of the
images, whatever the number of layers, and memory holds the activations of one part.

To first order means: right for small changes. At 4 bits networks take up part of the change, and errors are too high
by 1 to 5 dB (measured on Compact and EDSR), in most layers alike. So they rank layers; what a choice of layers costs is
measured (`tuning.mixed_widths`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from odm_deploy.accounting import full_hd_macs
from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import run_network
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.exact.integer_products import integer_products
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.signals import with_signals
from odm_deploy.quantization.size_dependence import depends_on_size

PART_PX = 48
"""Height and width of a part: more than the reach of most layers, and a multiple of what window attention needs."""
PARTS = 8
PROBES = 4
"""Backward passes for each part; parts times probes squares are averaged, and 32 leave an error of a decibel."""


MACS, WEIGHTS = "MACs", "weights"
"""What a layer's share of the work is counted in."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer costs while all others stay float."""

    name: str
    """Dotted name."""
    weight_bits: int
    activation_bits: int
    error: float
    """Mean squared error at the output, in squared 8-bit steps."""
    macs_share: float
    """Its share of the network's multiply-adds, 0 to 1."""
    share_of: str = MACS
    """What `macs_share` is a share of: `WEIGHTS` where multiply-adds cannot be counted."""

    @property
    def psnr_db(self) -> float:
        """PSNR between the float output and that with this layer quantized; infinite where it costs nothing."""
        return 10.0 * math.log10(255.0**2 / self.error) if self.error else math.inf


def layer_sensitivities(
    network: SuperResolutionNetwork,
    model: QuantizedModel,
    images: Sequence[Tensor],
    track: Track = untracked,
    *,
    parts: int = PARTS,
    probes: int = PROBES,
) -> list[LayerSensitivity]:
    """Sensitivity of every quantized layer, in network order.

    Args:
        network: the float network that `model` was made of, or `float_inputs` of the model.
        model: its quantized form.
        images: network inputs, float32 [1, 3, H, W] in 0..255; small parts of them are used, or, where what layers read
            depends on the image's size, as many whole ones as are no more work.
        track: for a progress bar over the parts.
        parts: how many parts.
        probes: backward passes a part.

    Raises:
        InputError: no image, layers that the network lacks, or somebody's code that has no gradients.
    """
    layers = model.layers
    if images and depends_on_size(network, images[0]):
        sides = images[0].shape[2:]
        count = max(parts * PART_PX**2 // (sides[0] * sides[1]), 1)
        chosen = choose_parts(images, count, max(side for image in images for side in image.shape[2:]))
    else:
        chosen = choose_parts(images, parts)
    if model.exact is not None:
        # Nothing but convolutions and what stands between them: a sixth of the time goes. Other people's code may take
        # tensors apart by `view`, which needs channels one after the other.
        chosen = [part.contiguous(memory_format=torch.channels_last) for part in chosen]
    shares, share_of = macs_shares(network)
    network = float_form(network, model).eval().requires_grad_(False)
    squares = dict.fromkeys(layers, 0.0)
    signs = torch.Generator().manual_seed(0)
    try:
        with integer_products(model):
            for part in track(chosen, len(chosen), "sensitivity of the layers"):
                # Other people's code overwrites, as by `x *= y`, what gradients need.
                with allow_mutation_on_saved_tensors():
                    found = _squares(network, layers, part, probes, signs)
                for name, square in found.items():
                    squares[name] += square / len(chosen)
    except RuntimeError as error:
        raise InputError(
            f"no gradients pass through {network.title}, so its layers cannot be ranked",
            why=str(error).splitlines()[0][:200],
            fix="say by --layer NAME=WIDTH which layers get more bits",
        ) from error
    return [
        LayerSensitivity(name, layer.weight_bits, layer.grid.bits, squares[name], shares[name], share_of)
        for name, layer in layers.items()
    ]


def float_inputs(model: QuantizedModel) -> SuperResolutionNetwork:
    """The model's network without the rounding of inputs and signals.

    It stands in for the float network of a `model.pt`, which holds no float weights. Sensitivities against it are those
    of the inputs' codes alone.
    """
    network = copy.deepcopy(model.network)
    for module in network.modules():
        if isinstance(module, QuantizedLayer):
            module.rounds_input = False
    with_signals(network, {})
    return network


def macs_shares(network: SuperResolutionNetwork) -> tuple[dict[str, float], str]:
    """Share of the network's multiply-adds that each module's own products have, by dotted name; and `MACS`.

    Where they cannot be counted, because somebody's code does not run without data, the share of the weights, and
    `WEIGHTS`.
    """
    share_of = MACS
    try:
        _, macs = full_hd_macs(network)
    except InputError:
        share_of = WEIGHTS
        macs = {
            name: sum(value.numel() for value in module.parameters(recurse=False))
            for name, module in network.named_modules()
        }
    total = sum(macs.values()) or 1
    return {name: count / total for name, count in macs.items()}, share_of


def choose_parts(images: Sequence[Tensor], count: int, part_px: int = PART_PX) -> list[Tensor]:
    """`count` parts of images, float32 [1, 3, h, w] with h and w at most `part_px`, evenly spaced over all there are.

    Fewer where the images have no more; they do not overlap.

    Raises:
        InputError: no image.
    """
    tiles = [
        image[..., top : top + part_px, left : left + part_px]
        for image in images
        for top in range(0, max(image.shape[2] - part_px, 0) + 1, part_px)
        for left in range(0, max(image.shape[3] - part_px, 0) + 1, part_px)
    ]
    if not tiles:
        raise InputError("nothing to measure on", why="there is no image", fix="give --images more images")
    if len(tiles) <= count:
        return tiles
    return [tiles[(2 * index + 1) * len(tiles) // (2 * count)] for index in range(count)]


def _squares(
    network: nn.Module,
    layers: dict[str, QuantizedLayer],
    part: Tensor,
    probes: int,
    signs: torch.Generator,
) -> dict[str, float]:
    """Mean of (v^T J_i d_i)^2 over the probes, divided by the values of the output, for each layer on one part."""
    # What quantization changes in each run of a layer, and a zero added there whose gradient is v^T J_i.
    changes: list[tuple[str, Tensor]] = []
    places: list[Tensor] = []

    def watched_by(name: str, layer: QuantizedLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            with torch.no_grad():
                changes.append((name, layer(inputs[0]) - output))
            places.append(torch.zeros_like(output, requires_grad=True))
            return output + places[-1]

        return hook

    modules = dict(network.named_modules())
    if missing := [name for name in layers if name not in modules]:
        raise InputError("the model is not of this network", why=f"the network has no layer {missing[0]}")
    with ExitStack() as hooks, torch.enable_grad():
        for name, layer in layers.items():
            hooks.enter_context(modules[name].register_forward_hook(watched_by(name, layer)))
        output = run_network(network, part).clamp(0.0, 255.0)
    squares = dict.fromkeys(layers, 0.0)
    for probe in range(probes):
        sign = torch.randint(0, 2, output.shape, generator=signs).to(output.dtype) * 2 - 1
        found = torch.autograd.grad(output, places, sign, retain_graph=probe + 1 < probes, allow_unused=True)
        # The stubs do not know that layers that the output does not depend on have None.
        gradients = cast("tuple[Tensor | None, ...]", found)
        moved = dict.fromkeys(layers, 0.0)
        for (name, change), gradient in zip(changes, gradients, strict=True):
            if gradient is not None:
                moved[name] += float((gradient * change).sum(dtype=torch.float64))
        for name, value in moved.items():
            squares[name] += value**2 / (probes * output.numel())
    return squares
