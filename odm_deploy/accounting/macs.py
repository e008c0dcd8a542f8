"""Multiply-adds of every module of a network, counted by running it without data."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.networks.base import SuperResolutionNetwork

FULL_HD_PX = (1080, 1920)
"""Height and width of the output image that the papers count for."""


def count_macs(network: SuperResolutionNetwork, output_px: tuple[int, int] = FULL_HD_PX) -> dict[str, int]:
    """Multiply-adds of each module's own products (not its children's) for one image, by dotted name.

    The network runs on torch's meta device: shapes without data, so the full image costs milliseconds. Convolutions,
    linear layers and matrix products count, whichever module they are in.

    Raises:
        UsageError: an output size that the scale does not divide.
        InputError: a foreign network that does not run without data.
    """
    height, width = output_px
    if min(output_px) < 1 or height % network.scale or width % network.scale:
        raise UsageError(
            f"cannot count for a {width}x{height} output", why=f"{network.name} upscales by {network.scale}"
        )
    shadow = copy.deepcopy(network).to("meta").eval()
    image = torch.empty(1, 3, height // network.scale, width // network.scale, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            shadow(image)
    except OdmError:
        raise
    except Exception as error:  # somebody else's forward may do anything to a tensor without data
        raise InputError(
            f"cannot count the operations of {network.name}", why=f"{type(error).__name__}: {error}"[:200]
        ) from error
    totals = counter.get_flop_counts()
    root = type(shadow).__name__

    modules = dict(shadow.named_modules())

    def children(name: str) -> list[str]:
        return [f"{name}.{child}" if name else child for child, _ in modules[name].named_children()]

    def total(name: str) -> int:
        found = totals.get(f"{root}.{name}" if name else root)
        # Lists of modules are never called themselves, so the counter does not know them. A multiply-add is two
        # operations to it.
        return sum(map(total, children(name))) if found is None else sum(found.values()) // 2

    return {name: total(name) - sum(map(total, children(name))) for name in modules}
