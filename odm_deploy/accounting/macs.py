"""Multiply-adds of every module of a network, counted by running it without data."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.networks.base import SuperResolutionNetwork

FULL_HD_PX = (1080, 1920)
"""Height and width of the output image that the papers count for."""


def full_hd_px(scale: int) -> tuple[int, int]:
    """`FULL_HD_PX`, or the next smaller height and width that a scale divides."""
    height, width = FULL_HD_PX
    return height // scale * scale, width // scale * scale


def count_macs(network: SuperResolutionNetwork, output_px: tuple[int, int] = FULL_HD_PX) -> dict[str, int]:
    """Multiply-adds of each module's own products (not its children's) for one image, by dotted name; of a module that
    is part of the network in several places, the first of its names, in all of its runs.

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
    # Not the counter's own names: it knows a module that is in several places by the last one alone.
    operations: Counter[str] = Counter()
    running: list[str] = []
    seen = 0

    def settle() -> None:
        nonlocal seen
        total = counter.get_total_flops()
        if running:
            operations[running[-1]] += total - seen
        seen = total

    def entering(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            settle()
            running.append(name)

        return hook

    def leaving(*_: Any) -> None:
        settle()
        running.pop()

    modules: dict[str, nn.Module] = dict(shadow.named_modules())
    for name, module in modules.items():
        module.register_forward_pre_hook(entering(name), prepend=True)
        module.register_forward_hook(leaving)
    try:
        # What the code makes on its own has no data, either.
        with torch.device("meta"), counter, torch.no_grad():
            shadow(image)
    except OdmError:
        raise
    except Exception as error:  # somebody else's forward may do anything to a tensor without data
        raise InputError(
            f"cannot count the operations of {network.title}", why=f"{type(error).__name__}: {error}"[:200]
        ) from error
    # A multiply-add is two operations to the counter.
    return {name: operations[name] // 2 for name in modules}
