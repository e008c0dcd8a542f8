"""Large images in pieces, without a seam: the stitched output equals the whole image's, to the bit.

A convolutional network's output pixel depends on input within its receptive field only. So each tile reads `overlap`
pixels more than it answers for, and what lies that close to a cut is thrown away. At the image's own border nothing is
thrown away: there the network's zero padding is what the whole image would have met too. That is also why tiles are
shifted inwards at the far edges instead of being padded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError
from odm_deploy.pipeline import go_on_if_wanted
from odm_deploy.progress import Track, counted, untracked

_Array = NDArray[Any]


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in input pixels: it reads [start, stop) and answers for [core_start, core_stop)."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def plan_tiles(height: int, width: int, tile: int, overlap: int) -> list[tuple[Span, Span]]:
    """Cover an image with tiles of one size, (rows, columns) each, whose cores partition it, row by row.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        tile: side of the square that the network is run on, overlap included, in input pixels. Along an axis where the
            image is smaller, tiles have the image's size. 0 means the whole image at once.
        overlap: radius of the network's receptive field, in input pixels.

    Returns:
        Tiles that all read min(tile, height) x min(tile, width) pixels.

    Raises:
        UsageError: `tile` leaves no core between its two overlaps, or a value is negative.
    """
    if tile < 0 or overlap < 0:
        raise UsageError("cannot cut tiles", why=f"tile {tile}, overlap {overlap}", fix="give no negative values")
    if tile == 0:
        tile = max(height, width)
    elif tile < 2 * overlap + 1:
        raise UsageError(
            f"tiles of {tile} pixels are too small",
            why=f"the network sees {counted(overlap, 'pixel')} far, so that nothing is left between the two margins",
            fix=f"use --tile {2 * overlap + 1} or more (several times that to be fast), or --tile 0 for no tiles",
        )
    columns = _spans(width, tile, overlap)
    return [(row, column) for row in _spans(height, tile, overlap) for column in columns]


def tiled_bands(
    run: Callable[[_Array], _Array],
    image: _Array,
    *,
    tile: int,
    overlap: int,
    scale: int,
    track: Track = untracked,
) -> Generator[_Array]:
    """`Tiles.bands` without a seam; `tile` and `overlap` are those of `plan_tiles`.

    For networks whose output depends on no more than `overlap` pixels around each pixel, the bands together are what
    `run(image)` gives, as exactly as `run` itself is independent of the size it is called with. Types are the caller's:
    with a `run` that rounds to uint8, only uint8 is ever held of a band. Joined tiles have their channels last in
    memory, because image files store them so.
    """
    width = image.shape[3]
    band: _Array | None = None
    tiles = plan_tiles(image.shape[2], width, tile, overlap)
    for rows, columns in track(tiles, len(tiles)):
        result = run_checked(run, image[..., rows.start : rows.stop, columns.start : columns.stop], scale)
        core = result[..., _kept(rows, scale), _kept(columns, scale)]
        if core.shape[3] == width * scale:
            yield core
            continue
        if band is None:
            count, channels, height, _ = core.shape
            band = np.empty((count, height, width * scale, channels), core.dtype).transpose(0, 3, 1, 2)
        band[..., columns.core_start * scale : columns.core_stop * scale] = core
        if columns.core_stop == width:
            yield band
            band = None


def join_bands(bands: Iterable[_Array], height: int | None) -> _Array:
    """Bands [h, W, C], from top to bottom, as one array [height, W, C]; never held twice. One band alone stays itself.

    Args:
        bands: their heights add up to `height`.
        height: of the whole, in pixels; None where there is one band.
    """
    whole: _Array | None = None
    filled = 0
    for band in bands:
        if height is None or len(band) == height:
            return band
        if whole is None:
            whole = np.empty((height, *band.shape[1:]), band.dtype)
        whole[filled : filled + len(band)] = band
        filled += len(band)
    assert whole is not None and filled == height
    return whole


def run_checked(run: Callable[[_Array], _Array], images: _Array, scale: int) -> _Array:
    """`run(images)`: [N, C, H, W] -> [N, C', H * scale, W * scale].

    Raises:
        InputError: it returned another shape than the scale says.
    """
    go_on_if_wanted()
    results = run(images)
    expected = (images.shape[0], images.shape[2] * scale, images.shape[3] * scale)
    if results.ndim != 4 or (results.shape[0], *results.shape[2:]) != expected:
        raise InputError(
            f"the network does not upscale by {scale}",
            why=f"it turned {list(images.shape)} into {list(results.shape)}",
            fix="give the network's own scale",
        )
    return results


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    if length <= tile:
        return [Span(0, length, 0, length)]
    spans: list[Span] = []
    answered = 0
    while answered < length:
        start = min(max(answered - overlap, 0), length - tile)
        stop = start + tile
        core_stop = length if stop == length else stop - overlap
        spans.append(Span(start, stop, answered, core_stop))
        answered = core_stop
    return spans


def _kept(span: Span, scale: int) -> slice:
    """The core within the tile's own output."""
    return slice((span.core_start - span.start) * scale, (span.core_stop - span.start) * scale)
