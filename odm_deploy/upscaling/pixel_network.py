"""A network as a function from pixels to pixels: conversion, rounding, tiles, and who may run it when."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from odm_deploy.closable import Closable
from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.pixels import PIXEL_TYPES, Bits, Pixels, from_network, to_network
from odm_deploy.imaging.tile_size import Tiles
from odm_deploy.imaging.tiling import join_bands
from odm_deploy.progress import Track, untracked
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.pool import RuntimePool


class PixelNetwork(Closable):
    """An open runtime, fed with images of any size. Threads may share one."""

    def __init__(self, runtime: Runtime, tiles: Tiles | None, *, contexts: int = 1) -> None:
        """Take over an open runtime.

        Args:
            runtime: runs the model; closed with the network.
            tiles: how images are cut; None: not at all.
            contexts: how many images may be under way at once.
        """
        self.pool = RuntimePool(runtime, contexts)
        self._tiles = tiles
        self.has_float_edges = all(edge.dtype != np.uint8 for edge in (*runtime.inputs, *runtime.outputs))
        """Whether the model takes and returns floats, and so tells more than 256 levels apart."""

    def check_bits(self, bits: Bits | None) -> None:
        """Raise UsageError for another depth than 8 or 16, or 16 bits of a model that takes or returns 8."""
        if bits not in (None, 8, 16):
            raise UsageError(f"no results of {bits} bits a sample", fix="ask for 8 or 16")
        if bits == 16 and not self.has_float_edges:
            why = "this model takes and returns uint8"
            raise UsageError("no results of 16 bits a sample", why=why, fix="export it without --io uint8")

    def whole(self, rgb: Pixels, tile: int | None, bits: Bits, track: Track = untracked) -> Pixels:
        """[H, W, 3] -> [scale*H, scale*W, 3]: all of `bands` in one array. Raises as `bands`."""
        height = None if self._tiles is None else self._tiles.scale * rgb.shape[0]
        return join_bands(self.bands(rgb, tile, bits, track), height)

    def bands(self, rgb: Pixels, tile: int | None, bits: Bits, track: Track = untracked) -> Generator[Pixels]:
        """Upscale uint8 or uint16 [H, W, 3]; yield the result from top to bottom, a row of tiles at a time.

        `tile` is their side in input pixels: 0 runs the image whole, None chooses. `bits` are those of the result.

        Yields:
            uint8 or uint16 [h, scale*W, 3], rounded half to even and clamped; the h add up to scale*H.

        Raises:
            InputError: not such an image, or a size the engine was not built for.
            UsageError: tiles too small for the network or where none are possible, 16 bits of a model of 8, or closed.
        """
        if rgb.dtype not in PIXEL_TYPES or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            why = f"it is {rgb.dtype} {rgb.shape}, not uint8 or uint16 [H, W, 3]"
            raise InputError("cannot upscale this image", why=why)
        self.check_bits(bits)

        def run(images: Pixels) -> Pixels:
            """[1, 3, H, W] -> [1, 3, scale*H, scale*W], channels last in memory. Rounded, large results stay small."""
            with self.pool.borrowed() as runtime:
                pixels = from_network(runtime.run_rgb(to_network(images)), bits)
            return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

        image = rgb.transpose(2, 0, 1)[None]
        if self._tiles is not None:
            side = self._tiles.side_for(*rgb.shape[:2]) if tile is None else tile
            bands = self._tiles.bands(run, image, side, track)
        elif tile:
            raise UsageError(f"tiles of {tile} pixels", why="a bare model does not say how far it looks; open a bundle")
        else:
            bands = iter([run(image)])
        for band in bands:
            # No copy, where the channels are last in memory already.
            yield np.ascontiguousarray(band[0].transpose(1, 2, 0))

    def close(self) -> None:
        """Close the runtime. Images under way are finished first; later ones are refused."""
        self.pool.close()
