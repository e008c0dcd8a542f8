"""What ranges do to the picture, before weights are rounded: to photographs, to lettering, to areas of one colour."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import run_network
from odm_deploy.quantization.colour_areas import CORNER_COLOURS, WHITE, colour_area, middle_colour
from odm_deploy.quantization.contrast_chart import contrast_chart
from odm_deploy.quantization.layers import FrozenLayer, QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel, computed_by, freeze
from odm_deploy.quantization.patches import batch_of
from odm_deploy.quantization.reconstruction import divided_by_gains

COLOURS = tuple(CORNER_COLOURS)


class RangeTrials:
    """A float network next to itself with inputs of layers on grids; nothing else is quantized.

    Args:
        network: the float network.
        parts: of photographs, float32 [N, 3, H, W] in 0..255.
    """

    def __init__(self, network: SuperResolutionNetwork, parts: Sequence[Tensor]) -> None:
        self._network = network
        self._photographs = batch_of(parts, network)
        # Where somebody else's network takes one image at a time, the batch is one tall image.
        self._size_px = (min(part.shape[2] for part in parts), self._photographs.shape[3])
        self._float = cache(self._run)

    def photographs_db(self, layers: Mapping[str, FrozenLayer]) -> float:
        """PSNR between what the network makes of the photographs with and without these grids."""
        return self._psnr("photographs", layers)

    def lettering_db(self, layers: Mapping[str, FrozenLayer]) -> float:
        """The same of lines one pixel wide."""
        return self._psnr("lettering", layers)

    @torch.no_grad()
    def tints(
        self, layers: Mapping[str, FrozenLayer], colours: Iterable[int] = range(len(COLOURS)), only: str | None = None
    ) -> dict[int, float]:
        """By how many of 255 areas of one colour change, in the channel that changes most.

        Args:
            layers: on their grids.
            colours: which of `COLOURS`.
            only: the one layer whose grid counts; None: all do.

        Returns:
            The changes by the number of the colour.
        """
        found: dict[int, float] = {}
        with self._on_grids(layers, only) as model:
            for colour in colours:
                change = middle_colour(model(self.image(colour))) - middle_colour(self._float(colour))
                found[colour] = float(change.abs().max())
        return found

    @torch.no_grad()
    def _psnr(self, shown: str, layers: Mapping[str, FrozenLayer]) -> float:
        with self._on_grids(layers) as model:
            moved = model(self.image(shown)).clamp(0, WHITE) - self._float(shown)
        error = float(moved.square().mean())
        return 10.0 * math.log10(WHITE**2 / error) if error else math.inf

    @torch.no_grad()
    def _run(self, shown: str | int) -> Tensor:
        return run_network(self._network, self.image(shown)).clamp(0, WHITE)

    def image(self, shown: str | int) -> Tensor:
        """What is shown, as network input: "photographs", "lettering", or an area of the colour of this number."""
        if shown == "photographs":
            return self._photographs
        if shown == "lettering":
            return contrast_chart(*self._size_px, strokes=True)
        assert isinstance(shown, int)
        return colour_area(COLOURS[shown], *self._size_px)

    @contextmanager
    def _on_grids(self, layers: Mapping[str, FrozenLayer], only: str | None = None) -> Generator[QuantizedModel]:
        model = freeze(self._network, layers)
        modules = dict(self._network.named_modules())
        weights = divided_by_gains({name: modules[name].get_parameter("weight").detach() for name in layers}, layers)
        for name, layer in model.layers.items():
            layer.rounds_input = only is None or name == only
        with computed_by(model.layers.values(), partial(_with_float_weight, weights)):
            yield model


def _with_float_weight(weights: Mapping[str, Tensor], layer: QuantizedLayer, _forward: object, x: Tensor) -> Tensor:
    return layer.product(layer.quantized_input(layer.pad(x)), weights[layer.name], layer.bias)
