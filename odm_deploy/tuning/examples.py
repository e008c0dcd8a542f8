"""What a network learns from: random parts of images, flipped and transposed at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import first_that_runs
from odm_deploy.tuning.effort import macs_of

PATCH_PX = 48
"""Height and width of a training example: a multiple of what window attention needs."""
MOST_BATCH = 4
STEP_MACS = 8e9
"""Multiply-adds of the network's forward pass on a batch: large networks get smaller batches, and more steps."""


class Examples:
    """Batches of parts of images, the same ones for the same seed.

    Args:
        images: float32 [1, 3, H, W] in 0..255, all held in memory.
        batch: parts in a batch.
        seed: of what is drawn.
    """

    def __init__(self, images: Sequence[Tensor], batch: int, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self._images, self._batch = images, batch
        self._patch = min(PATCH_PX, *(size for image in images for size in image.shape[2:]))

    def draw(self) -> Tensor:
        """The next batch, float32 [batch, 3, P, P]."""
        return torch.stack([self._part() for _ in range(self._batch)])

    def _part(self) -> Tensor:
        image = self._images[self._number(len(self._images))]
        top, left = (self._number(size - self._patch + 1) for size in image.shape[2:])
        part = image[0, :, top : top + self._patch, left : left + self._patch]
        part = part.flip([axis for axis in (1, 2) if self._number(2)])
        return part.transpose(1, 2) if self._number(2) else part

    def _number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.random))


def batch_size(network: SuperResolutionNetwork) -> int:
    """Examples a step, 1 to `MOST_BATCH`; 1 where somebody else's network takes one image at a time."""
    count = max(1, min(MOST_BATCH, int(STEP_MACS / max(macs_of(network) * PATCH_PX**2, 1))))
    batch = torch.zeros(count, 3, PATCH_PX, PATCH_PX)
    return len(first_that_runs(network, (batch, batch[:1])))
