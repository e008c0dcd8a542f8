"""How batches reach the device: made ahead in a thread of their own, copied without waiting."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from odm_deploy.pipeline import map_ahead
from training.data import ImagePool, to_network
from training.distributed import World
from training.recipe import RunSection

_READY = 3
"""Batches that may be ready and waiting."""


def feed(
    pool: ImagePool, settings: RunSection, iterations: range, world: World
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """This process's part of the batches of `iterations`, in order; close it to end its thread.

    Yields:
        float32 [N, 3, H, W] and [N, 3, scale*H, scale*W] in 0..255, on the device.
    """
    share = world.share(settings.batch)
    on_gpu = settings.device == "cuda"
    # A thread starts on the first GPU, whichever one this process trains on.
    gpu = torch.cuda.current_device() if on_gpu else -1

    def make(iteration: int) -> list[Tensor]:
        parts = [part[share] for part in pool.batch(iteration, settings.batch)]
        if not on_gpu:
            return parts
        with torch.cuda.device(gpu):
            return [part.pin_memory() for part in parts]

    with closing(map_ahead(make, iterations, depth=_READY)) as ready:
        for low, high in ready:
            yield to_network(low, settings.device), to_network(high, settings.device)
