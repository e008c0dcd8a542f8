"""What photographs hardly show, drawn: what quantization does to small lettering and to areas of one colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from odm_deploy.errors import OdmError
from odm_deploy.imaging.colour_areas import CORNER_COLOURS, area_colours, colour_areas
from odm_deploy.imaging.lettering import lettering
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.tuning.held_back import HeldBack, Network, OutputCost, Sample, picture

_Seen = TypeVar("_Seen")
_Cost = TypeVar("_Cost")


@dataclass(frozen=True)
class AreaCost:
    """What became of an area of one colour."""

    name: str
    """One of `CORNER_COLOURS`."""
    change: tuple[float, float, float]
    """Quantized less float in red, green and blue: the mean of the area's middle, in 8-bit steps."""

    @property
    def largest(self) -> float:
        """The change of the channel that changes most."""
        return max(map(abs, self.change))


@dataclass(frozen=True)
class DrawingCosts:
    """What became of drawings; None where the networks give no picture."""

    lettering: OutputCost | None
    areas: tuple[AreaCost, ...] | None


def compare_drawings(
    network: Network, model: Network, height: int, width: int, say: Callable[[str], None]
) -> DrawingCosts:
    """Show a float network and its quantized model drawings of this size, at which the network runs.

    Where either gives no picture of one, `say` gets a line that says why: hours of work are not to end in that.
    """
    lines, areas = (torch.from_numpy(to_batch(draw(height, width))) for draw in (lettering, colour_areas))
    return DrawingCosts(
        _compared(
            "small lettering", say, lambda: HeldBack(network, [Sample(lines)]), lambda drawn: drawn.measure(model)
        ),
        _compared(
            "areas of one colour",
            say,
            lambda: picture(network, areas),
            lambda seen: _areas(picture(model, areas), seen),
        ),
    )


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


def _areas(found: Tensor, expected: Tensor) -> tuple[AreaCost, ...]:
    """Of two pictures of `colour_areas`, float32 [1, 3, H, W] each."""
    changes = [area_colours(output[0].permute(1, 2, 0).double().numpy()) for output in (found, expected)]
    return tuple(
        AreaCost(name, (float(red), float(green), float(blue)))
        for name, (red, green, blue) in zip(CORNER_COLOURS, changes[0] - changes[1], strict=True)
    )
