"""How a network's images are cut: whole where memory and the engine allow it, else in tiles as large as they allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from odm_deploy.imaging.blending import ALIGN_PX, SMALLEST_BLENDED_TILE_PX, blended_bands
from odm_deploy.imaging.tiling import tiled_bands
from odm_deploy.progress import Track

MEMORY_SHARE = 0.25
"""Part of this machine's memory that the activations of one run may take."""
ASSUMED_BYTES_PER_PX = 2048
"""Activations per input pixel of graphs whose shapes cannot be inferred: four layers of 128 channels."""
LARGEST_TILE_PX = 1024
"""Beyond this side, larger tiles save next to no overlap."""
SMALLEST_TILE_PX = 64


def whole_limit_px(memory_bytes: int, bytes_per_px: float | None) -> int:
    """Input pixels of the largest image whose activations fit into their share of memory.

    Args:
        memory_bytes: this machine's.
        bytes_per_px: activations per input pixel; None where that is not known.
    """
    return int(MEMORY_SHARE * memory_bytes / (bytes_per_px or ASSUMED_BYTES_PER_PX))


@dataclass(frozen=True)
class Tiles:
    """What has to be known to cut images for a network. Sizes are in input pixels."""

    scale: int
    """Output pixels per input pixel along each axis."""
    radius_px: int | None
    """How far the network looks; None: without bound, so that tiles are blended and only come near the whole."""
    side: int | None = None
    """Of all tiles; 0 runs every image whole; None chooses for each image."""
    whole_limit_px: int | None = None
    """Pixels of the largest image that is run whole; None: any."""
    largest: tuple[int, int] | None = None
    """Height and width of the largest image that an engine was built for; None: any."""

    def side_for(self, height: int, width: int) -> int:
        """The side of the square tiles that an image of this size is cut into; 0: none, it is run whole."""
        if self.side is not None:
            return self.side
        fits_engine = self.largest is None or (height <= self.largest[0] and width <= self.largest[1])
        if fits_engine and (self.whole_limit_px is None or height * width <= self.whole_limit_px):
            return 0
        # With less than this, more than three quarters of the work would be overlap.
        smallest = SMALLEST_BLENDED_TILE_PX if self.radius_px is None else max(SMALLEST_TILE_PX, 4 * self.radius_px)
        fitting = LARGEST_TILE_PX if self.whole_limit_px is None else math.isqrt(self.whole_limit_px)
        side = max(min(fitting, LARGEST_TILE_PX) // ALIGN_PX * ALIGN_PX, smallest)
        return side if self.largest is None else min(side, *self.largest)

    def blend(self, height: int, width: int) -> bool:
        """Whether an image of this size is cut into tiles that only approximate the whole."""
        side = self.side_for(height, width)
        return self.radius_px is None and 0 < side < max(height, width)

    def bands(
        self, run: Callable[[NDArray[Any]], NDArray[Any]], image: NDArray[Any], side: int, track: Track
    ) -> Generator[NDArray[Any]]:
        """Run a network over an image in tiles; yield the result from top to bottom.

        Args:
            run: [N, C, h, w] -> [N, C', h * scale, w * scale], uint8 or uint16.
            image: [N, C, H, W], uint8 or uint16.
            side: of the tiles; 0 runs the image whole.
            track: shows progress, one step a tile.

        Yields:
            [N, C', h, W * scale], of the type `run` returns; the h add up to H * scale.

        Raises:
            UsageError: tiles too small for the network.
            InputError: `run` returned another shape than the scale says.
        """
        if side and self.radius_px is None:
            return blended_bands(run, image, tile=side, scale=self.scale, track=track)
        return tiled_bands(run, image, tile=side, overlap=self.radius_px or 0, scale=self.scale, track=track)
