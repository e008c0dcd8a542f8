"""Large images in pieces, without a seam: the stitched output equals the whole image's, to the bit.

A convolutional network's output pixel depends on input within its receptive field only. So each tile reads `overlap`
pixels more than it answers for, and what lies that close to a cut is thrown away. At the image's own border nothing is
thrown away: there the network's zero padding is what the whole image would have met too. That is also why tiles are
shifted inwards at the far edges instead of being padded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError

_Array = NDArray[Any]
Track = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of a known length to show progress, such as `odm_deploy.terminal.progress` yields."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in input pixels: it reads [start, stop) and answers for [core_start, core_stop)."""

    start: int
    stop: int
    core_start: int
    core_stop: int


@dataclass(frozen=True)
class Tile:
    """A rectangle of the input image."""

    rows: Span
    columns: Span


def plan_tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Cover an image with tiles of one size whose cores partition it, row by row.

    Args:
        height: of the input image, in pixels.
        width: of the input image, in pixels.
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
            why=f"the network sees {overlap} pixels far, so that nothing is left between the two margins",
            fix=f"use --tile {2 * overlap + 1} or more (several times that to be fast), or --tile 0 for no tiles",
        )
    columns = _spans(width, tile, overlap)
    return [Tile(row, column) for row in _spans(height, tile, overlap) for column in columns]


def run_tiled(
    run: Callable[[_Array], _Array],
    image: _Array,
    *,
    tile: int,
    overlap: int,
    scale: int,
    batch: int = 1,
    track: Track | None = None,
) -> _Array:
    """Run a network over an image tile by tile and stitch the cores: the whole of what `tiled_bands` yields.

    Args:
        run: see `tiled_bands`.
        image: see `tiled_bands`.
        tile: see `plan_tiles`.
        overlap: see `plan_tiles`.
        scale: see `tiled_bands`.
        batch: see `tiled_bands`.
        track: see `tiled_bands`.

    Returns:
        [N, C', H * scale, W * scale], of the dtype `run` returns, channels last in memory.

    Raises:
        UsageError: as `tiled_bands`.
        InputError: as `tiled_bands`.
    """
    output: _Array | None = None
    filled = 0
    for band in tiled_bands(run, image, tile=tile, overlap=overlap, scale=scale, batch=batch, track=track):
        if output is None:
            whole = band.shape[2] == image.shape[2] * scale
            output = band if whole else _channels_last(band, band.shape[0], image.shape[2] * scale, band.shape[3])
        if output is not band:
            output[:, :, filled : filled + band.shape[2]] = band
        filled += band.shape[2]
    assert output is not None
    return output


def tiled_bands(
    run: Callable[[_Array], _Array],
    image: _Array,
    *,
    tile: int,
    overlap: int,
    scale: int,
    batch: int = 1,
    track: Track | None = None,
) -> Generator[_Array]:
    """Run a network over an image tile by tile; yield the result from top to bottom, a row of tiles at a time.

    For networks whose output depends on no more than `overlap` pixels around each pixel, the bands together are what
    `run(image)` gives, as exactly as `run` itself is independent of the size it is called with. Types are the caller's:
    with a `run` that rounds to uint8, only uint8 is ever held of a band.

    Args:
        run: [n, C, h, w] -> [n, C', h * scale, w * scale], called with n up to `batch` times the images' N.
        image: [N, C, H, W], any dtype.
        tile: see `plan_tiles`.
        overlap: see `plan_tiles`.
        scale: of the network.
        batch: tiles of a row handed to one call of `run`; the last call of a row may have fewer.
        track: shows progress, one step a call.

    Yields:
        [N, C', h * scale, W * scale], of the dtype `run` returns, channels last in memory: image files store them so.

    Raises:
        UsageError: see `plan_tiles`; or `batch` is less than 1.
        InputError: `run` returned another shape than the scale says.
    """
    if batch < 1:
        raise UsageError("cannot run tiles", why=f"batch {batch}", fix="give at least 1")
    tiles = plan_tiles(image.shape[2], image.shape[3], tile, overlap)
    groups = [
        row[first : first + batch]
        for row in (list(row) for _, row in groupby(tiles, key=lambda piece: piece.rows))
        for first in range(0, len(row), batch)
    ]
    band: _Array | None = None
    for group in groups if track is None else track(groups, len(groups)):
        results = _run_group(run, image, group, scale)
        rows = group[0].rows
        if band is None:
            height = (rows.core_stop - rows.core_start) * scale
            band = _channels_last(results, image.shape[0], height, image.shape[3] * scale)
        for result, piece in zip(np.split(results, len(group)), group, strict=True):
            kept = result[..., _kept(piece.rows, scale), _kept(piece.columns, scale)]
            band[..., _placed(piece.columns, scale)] = kept
        if group[-1].columns.core_stop == image.shape[3]:
            yield band
            band = None


def _run_group(run: Callable[[_Array], _Array], image: _Array, group: list[Tile], scale: int) -> _Array:
    """What the network makes of several tiles, one behind the other: [len(group) * N, C', h * scale, w * scale]."""
    return run_checked(
        run, np.concatenate([image[..., _read(tile.rows), _read(tile.columns)] for tile in group]), scale
    )


def run_checked(run: Callable[[_Array], _Array], images: _Array, scale: int) -> _Array:
    """`run(images)`: [N, C, H, W] -> [N, C', H * scale, W * scale].

    Raises:
        InputError: it returned another shape than the scale says.
    """
    results = run(images)
    expected = (images.shape[0], images.shape[2] * scale, images.shape[3] * scale)
    if results.ndim != 4 or (results.shape[0], *results.shape[2:]) != expected:
        raise InputError(
            f"the network does not upscale by {scale}",
            why=f"it turned {list(images.shape)} into {list(results.shape)}",
            fix="give the network's own scale",
        )
    return results


def _channels_last(like: _Array, count: int, height: int, width: int) -> _Array:
    """A new array [count, C, height, width] of the type of `like`; the samples of a pixel lie side by side."""
    return np.empty((count, height, width, like.shape[1]), like.dtype).transpose(0, 3, 1, 2)


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


def _read(span: Span) -> slice:
    """What the tile reads of the input."""
    return slice(span.start, span.stop)


def _kept(span: Span, scale: int) -> slice:
    """The core within the tile's own output."""
    return slice((span.core_start - span.start) * scale, (span.core_stop - span.start) * scale)


def _placed(span: Span, scale: int) -> slice:
    """The core within the whole output."""
    return slice(span.core_start * scale, span.core_stop * scale)
