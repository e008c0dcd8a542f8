"""What photographs hardly show, drawn: what quantization does to small lettering and to areas of one colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from odm_deploy.errors import OdmError
from odm_deploy.imaging.lettering import lettering
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.networks.running import run_network
from odm_deploy.quantization.colour_areas import CORNER_COLOURS, WHITE, colour_area, middle_colour
from odm_deploy.tuning.held_back import HeldBack, Network, OutputCost, Sample, picture

_Seen = TypeVar("_Seen")
_Cost = TypeVar("_Cost")
_NOISE_STEPS = 0.5
"""Largest change of a value by noise that nobody sees, in 8-bit steps. No model can be near to what amplifies that."""


@dataclass(frozen=True)
class AreaCost:
    """What became of an area of one colour."""

    name: str
    """One of `CORNER_COLOURS`."""
    change: tuple[float, float, float]
    """Quantized less float in red, green and blue: the mean of the area's middle, in 8-bit steps."""
    float_alone: float = 0.0
    """Largest change of a channel of the float network's, by noise of half a step in its input; 0 where that gives no
    picture."""

    @property
    def largest(self) -> float:
        """The change of the channel that changes most."""
        return max(map(abs, self.change))


@dataclass(frozen=True)
class DrawingCosts:
    """What became of drawings; None where the networks give no picture."""

    lettering: OutputCost | None
    areas: tuple[AreaCost, ...] | None
    float_alone: OutputCost | None = None
    """What became of small lettering in the float network by noise of half a step in its input; None likewise."""


def compare_drawings(
    network: Network, model: Network, height: int, width: int, say: Callable[[str], None]
) -> DrawingCosts:
    """Show a float network and its quantized model drawings of this size, at which the network runs.

    Where either gives no picture of one, `say` gets a line that says why: hours of work are not to end in that.
    """
    lines = torch.from_numpy(to_batch(lettering(height, width)))
    areas = {name: colour_area(name, height, width) for name in CORNER_COLOURS}
    noisy = _with_noise(network, lines)
    letters = _compared(
        "small lettering",
        say,
        lambda: HeldBack(network, [Sample(lines)]),
        lambda drawn: (drawn.measure(model), _or_none(lambda: drawn.measure(noisy))),
    )
    tints = _compared(
        "areas of one colour",
        say,
        lambda: {
            name: (_shown_by(network, area), _or_none(partial(_shown_by, noisy, area))) for name, area in areas.items()
        },
        lambda seen: tuple(_area_cost(name, *seen[name], _shown_by(model, area)) for name, area in areas.items()),
    )
    return DrawingCosts(letters and letters[0], tints, letters and letters[1])


def _with_noise(network: Network, like: Tensor) -> Network:
    """The network behind noise of half a step, the same at each call."""
    noise = (2.0 * torch.rand(like.shape, generator=torch.Generator().manual_seed(0)) - 1.0) * _NOISE_STEPS
    return lambda images: run_network(network, (images + noise).clamp(0.0, WHITE))


def _compared(
    what: str, say: Callable[[str], None], of_float: Callable[[], _Seen], cost: Callable[[_Seen], _Cost]
) -> _Cost | None:
    try:
        seen = of_float()
    except OdmError as error:
        say(f"{what}: not compared, since the float network gives no picture of it: {error}")
        return None
    try:
        return cost(seen)
    except OdmError as error:
        say(f"{what}: the quantized network gives no picture of it, and the float one does: {error}")
        return None


def _or_none(run: Callable[[], _Seen]) -> _Seen | None:
    """What `run` returns; None where the network gives no picture, which is nothing that has to be known."""
    try:
        return run()
    except OdmError:
        return None


def _shown_by(network: Network, area: Tensor) -> Tensor:
    return middle_colour(picture(network, area)).double()


def _area_cost(name: str, expected: Tensor, with_noise: Tensor | None, found: Tensor) -> AreaCost:
    red, green, blue = (found - expected).tolist()
    alone = 0.0 if with_noise is None else float((with_noise - expected).abs().max())
    return AreaCost(name, (red, green, blue), alone)
