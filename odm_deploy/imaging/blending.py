"""Large images in pieces for networks that look further than any tile: neighbours fade into each other.

Where attention or a global mean ties every pixel to every other, no overlap reproduces the whole image. So neighbouring
tiles share a strip; near its edges, where a tile misses most of its surroundings, that tile counts for nothing, and in
the middle one tile fades linearly into the next. The result differs from the whole image's, but shows no edge.

Tiles start at multiples of `ALIGN_PX`: networks that cut images into windows then cut the same windows as they would
have cut from the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import UsageError
from odm_deploy.imaging.pixels import Pixels
from odm_deploy.imaging.tiling import run_checked
from odm_deploy.progress import Track, untracked

ALIGN_PX = 16
"""A multiple of the windows (8 and 16 pixels) of the networks in the field."""
SMALLEST_BLENDED_TILE_PX = 6 * ALIGN_PX
"""With less, there would be no room for strips and steps that are multiples of `ALIGN_PX`."""


@dataclass(frozen=True)
class Fade:
    """A tile along one axis, in input pixels: it reads [start, stop) and is seen in [fade_in, fade_out_end)."""

    start: int
    stop: int
    fade_in: int
    """Where it begins to show; its predecessor is gone at `fade_in_end`."""
    fade_in_end: int
    fade_out: int
    """Where its successor begins to show; from `fade_out_end` on, it alone does."""
    fade_out_end: int


def plan_fades(length: int, tile: int) -> list[Fade]:
    """Cover an axis with tiles that share a strip of at least a quarter of their size with each neighbour.

    Args:
        length: of the axis, in input pixels.
        tile: what the network is run on, in input pixels; the last tile may be up to `ALIGN_PX` smaller.

    Raises:
        UsageError: `tile` is less than `SMALLEST_BLENDED_TILE_PX`.
    """
    if tile < SMALLEST_BLENDED_TILE_PX:
        why = "the network looks further than that, so tiles have to share strips to fade into each other"
        fix = f"use --tile {SMALLEST_BLENDED_TILE_PX} or more, or --tile 0 for no tiles"
        raise UsageError(f"tiles of {tile} pixels are too small", why=why, fix=fix)
    if length <= tile:
        return [Fade(0, length, 0, 0, length, length)]
    strip = tile // 4
    last = math.ceil((length - tile) / ALIGN_PX) * ALIGN_PX
    steps = math.ceil(last / ((tile - strip) // ALIGN_PX * ALIGN_PX))
    starts = [round(last * index / steps / ALIGN_PX) * ALIGN_PX for index in range(steps + 1)]
    stops = [min(start + tile, length) for start in starts]
    fades = [(0, 0)]
    for start, stop in zip(starts[1:], stops[:-1], strict=True):
        # Half of the shortest strip, around the middle of this one: fades of one tile then never meet.
        begin = (start + stop) // 2 - strip // 4
        fades.append((begin, begin + strip // 2))
    fades.append((length, length))
    return [
        Fade(start, stop, *fades[index], *fades[index + 1])
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def blended_bands(
    run: Callable[[Pixels], Pixels],
    image: Pixels,
    *,
    tile: int,
    scale: int,
    track: Track = untracked,
) -> Generator[Pixels]:
    """`Tiles.bands` with tiles that fade into each other, of a side that `plan_fades` takes, or 0.

    Where tiles agree, the result is what they agree on, to the bit; elsewhere it is rounded half to even.
    """
    height, width = image.shape[2:]
    side = tile or max(height, width, SMALLEST_BLENDED_TILE_PX)
    rows, columns = plan_fades(height, side), plan_fades(width, side)
    pieces = [(row, column) for row in rows for column in columns]
    below: NDArray[np.float32] | None = None
    band: NDArray[np.float32] | None = None
    for row, column in track(pieces, len(pieces)):
        result = run_checked(run, image[..., row.start : row.stop, column.start : column.stop], scale)
        shown = result[..., _within(row, scale), _within(column, scale)]
        weights = np.outer(_weights(row, scale), _weights(column, scale))
        if band is None:
            band = np.zeros((*shown.shape[:3], width * scale), np.float32)
        band[..., column.fade_in * scale : column.fade_out_end * scale] += shown * weights
        if column is columns[-1]:
            if below is not None:
                band[:, :, : below.shape[2]] += below
            finished = (row.fade_out - row.fade_in) * scale
            yield np.rint(band[:, :, :finished]).astype(result.dtype)
            below, band = band[:, :, finished:].copy(), None


def _within(fade: Fade, scale: int) -> slice:
    """What is seen of a tile, in pixels of its own output."""
    return slice((fade.fade_in - fade.start) * scale, (fade.fade_out_end - fade.start) * scale)


def _weights(fade: Fade, scale: int) -> NDArray[np.float32]:
    """How much each output pixel that is seen of a tile counts; where two tiles fade, their weights sum to one."""
    centres = np.arange(fade.fade_in * scale, fade.fade_out_end * scale) + 0.5
    weights: NDArray[Any] = np.ones(len(centres))
    if fade.fade_in_end > fade.fade_in:
        weights *= np.clip((centres - fade.fade_in * scale) / ((fade.fade_in_end - fade.fade_in) * scale), 0, 1)
    if fade.fade_out_end > fade.fade_out:
        weights *= np.clip((fade.fade_out_end * scale - centres) / ((fade.fade_out_end - fade.fade_out) * scale), 0, 1)
    return weights.astype(np.float32)
