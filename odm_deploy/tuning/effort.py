"""How much of each image a network is calibrated and judged on: all that takes minutes, so less for large networks."""

from __future__ import annotations

from odm_deploy.accounting import count_macs
from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork

CALIBRATION_MACS = 6e12
"""Multiply-adds of the float network over all calibration images: some minutes of one core."""
JUDGED_MACS = 4e11
"""Of one comparison on the held-back images, of which a search for a goal makes a dozen."""
LEAST_PX = 48
"""No image is taken smaller: more than the reach of most layers, and a multiple of what window attention needs."""
_STEP_PX = 8
_COUNTED_PX = 64


def macs_of(network: SuperResolutionNetwork) -> float:
    """Multiply-adds of a network for each pixel of its input.

    Of somebody's code that does not run without data, its number of weights: in most networks each works once a pixel.
    """
    side = _COUNTED_PX * network.scale
    try:
        return sum(count_macs(network, (side, side)).values()) / _COUNTED_PX**2
    except InputError:
        return float(sum(parameter.numel() for parameter in network.parameters()))


def affordable_px(network: SuperResolutionNetwork, images: int, macs: float, most: int) -> int:
    """Height and width of inputs, in pixels, that so many multiply-adds are enough for.

    Args:
        network: what runs over them.
        images: how many there are.
        macs: `CALIBRATION_MACS` or `JUDGED_MACS`.
        most: what small networks get.
    """
    side = int((macs / max(images, 1) / max(macs_of(network), 1.0)) ** 0.5)
    return max(min(side // _STEP_PX * _STEP_PX, most), LEAST_PX)
