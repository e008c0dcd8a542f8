"""An engine as people use it: images of any size, with alpha, in tiles where whole ones would not fit into memory."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.closable import Closable
from odm_deploy.engine import Engine
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.imaging.blending import SMALLEST_BLENDED_TILE_PX
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import Bits, Pixels
from odm_deploy.imaging.png import write_png
from odm_deploy.imaging.tiling import Track
from odm_deploy.imaging.writing import write_image
from odm_deploy.manifest import ONNX_FILE, Manifest, read_manifest
from odm_deploy.pipeline import ahead
from odm_deploy.runtimes.base import RuntimeOptions

MEMORY_SHARE = 0.25
"""Part of this machine's memory that the activations of one run may take."""
ASSUMED_MEMORY_BYTES = 8 << 30
"""Memory of machines that do not say how much they have."""
ASSUMED_BYTES_PER_PX = 2048
"""Activations per input pixel of graphs whose shapes cannot be inferred: four layers of 128 channels."""
LARGEST_TILE_PX = 1024
"""Beyond this side, larger tiles save next to no overlap."""
SMALLEST_TILE_PX = 64


class Upscaler(Closable):
    """A bundle opened for images of any size. Close it, or use it as a context manager."""

    def __init__(
        self, engine: Engine, manifest: Manifest, *, tile: int | None, whole_limit_px: int, bits: Bits | None = None
    ) -> None:
        """Most callers want `Upscaler.open`.

        Args:
            engine: runs the network; closed with the upscaler.
            manifest: of its bundle.
            tile: side of square tiles in input pixels; 0 runs images whole; None decides for each image.
            whole_limit_px: pixels of the largest image that None runs whole.
            bits: of the results' samples; None gives each the depth of its image, as far as the model has it.
        """
        self.engine = engine
        self.manifest = manifest
        self._tile = tile
        self._whole_limit_px = whole_limit_px
        self._bits: Bits | None = bits

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        runtime: str | None = None,
        *,
        tile: int | None = None,
        threads: int | None = None,
        bits: Bits | None = None,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: what `odm-deploy export` wrote.
            runtime: a runtime's name; None takes the fastest that works here.
            tile: see the constructor.
            threads: CPU threads; None takes one a physical core.
            bits: see the constructor.

        Raises:
            InputError: the bundle is missing or damaged.
            MissingError: no runtime that could run it is installed.
            UsageError: there is no runtime of that name, or 16 bits are asked of a model that returns 8.
        """
        manifest = read_manifest(bundle)
        engine = Engine.open(bundle, runtime, RuntimeOptions(threads=threads))
        if bits == 16:
            engine.require_float_edges()
        limit = 0 if tile is not None else _whole_limit_px(Path(bundle) / ONNX_FILE)
        return cls(engine, manifest, tile=tile, whole_limit_px=limit, bits=bits)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return self.manifest.scale

    def result_bits(self, image: Image) -> Bits:
        """Of the samples of what this image becomes."""
        if self._bits is not None:
            return self._bits
        return image.bits if self.engine.has_float_edges else 8

    def tile_size(self, height: int, width: int) -> int:
        """The tile that an image of this size, in pixels, is cut into; 0: none, it is run whole."""
        if self._tile is not None:
            return self._tile
        largest = self._largest_engine_side()
        fits = largest is None or (height <= largest[0] and width <= largest[1])
        if fits and height * width <= self._whole_limit_px:
            return 0
        radius = self.manifest.receptive_radius_px
        # With less than this, more than three quarters of the work would be overlap.
        smallest = SMALLEST_BLENDED_TILE_PX if radius is None else max(SMALLEST_TILE_PX, 4 * radius)
        side = max(min(math.isqrt(self._whole_limit_px), LARGEST_TILE_PX) // 16 * 16, smallest)
        return side if largest is None else min(side, *largest)

    def blends(self, height: int, width: int) -> bool:
        """Whether an image of this size is cut into tiles that only approximate the whole."""
        tile = self.tile_size(height, width)
        return self.manifest.receptive_radius_px is None and tile > 0 and (height > tile or width > tile)

    def upscale(self, image: Image, track: Track | None = None) -> Image:
        """Upscale colours and, by the same network, transparency; the colour profile is kept.

        Args:
            image: any size.
            track: shows progress, one step a tile.

        Raises:
            InputError: a size the engine was not built for.
            UsageError: tiles too small for the network.
        """
        tile, bits = self.tile_size(image.height, image.width), self.result_bits(image)
        alpha = None
        if image.alpha is not None:
            alpha = self.engine.upscale(_as_gray(image.alpha), tile=tile, bits=bits, track=track)[..., 1]
        rgb = self.engine.upscale(image.rgb, tile=tile, bits=bits, track=track)
        return Image(rgb, alpha, image.gray, image.icc_profile)

    def bands(self, image: Image, track: Track | None = None) -> Generator[Pixels]:
        """The same, from top to bottom, for results too large to be held whole.

        Args:
            image: see `upscale`.
            track: see `upscale`.

        Yields:
            uint8 or uint16 [h, scale*W, 3], or 4 with transparency as the fourth channel; the h add up to scale*H.

        Raises:
            InputError: as `upscale`.
            UsageError: as `upscale`.
        """
        tile, bits = self.tile_size(image.height, image.width), self.result_bits(image)
        colours = self.engine.upscale_bands(image.rgb, tile=tile, bits=bits, track=track)
        if image.alpha is None:
            yield from colours
            return
        alpha = self.engine.upscale_bands(_as_gray(image.alpha), tile=tile, bits=bits)
        for rgb, gray in zip(colours, alpha, strict=True):
            yield np.concatenate([rgb, gray[..., 1:2]], axis=2)

    def upscale_to(self, path: Path | str, image: Image, track: Track | None = None) -> None:
        """Upscale into a file. PNG is written while the next tiles are computed, so that it is never held whole.

        Args:
            path: see `write_image`.
            image: see `upscale`.
            track: see `upscale`.

        Raises:
            InputError: as `upscale` and `write_image`.
            UsageError: as `upscale` and `write_image`.
        """
        # Whether a gray image stayed gray, and is stored as such, shows behind its last row only.
        if Path(path).suffix.lower() != ".png" or image.gray:
            write_image(path, self.upscale(image, track))
            return
        with closing(ahead(self.bands(image, track), depth=1)) as bands:
            write_png(path, bands, image.height * self.scale, icc_profile=image.icc_profile)

    def pixels(self, rgb: NDArray[np.uint8], track: Track | None = None) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3]. Raises as `upscale`."""
        tile = self.tile_size(rgb.shape[0], rgb.shape[1])
        return self.engine.upscale(rgb, tile=tile, track=track)

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and settings, as plain values."""
        return self.engine.describe()

    def _largest_engine_side(self) -> tuple[int, int] | None:
        """Height and width, in pixels, of the largest image that an engine was built for; None for other runtimes."""
        engine = self.manifest.engine
        if self.engine.runtime.model_kind != "plan" or engine is None or "profile" not in engine:
            return None
        return parse_shapes(str(engine["profile"])).max[2:]

    def close(self) -> None:
        """Free the model."""
        self.engine.close()


def _as_gray(alpha: Pixels) -> Pixels:
    """Transparency as an image of its own, [H, W, 3], for the same network."""
    return np.repeat(alpha[..., None], 3, axis=2)


def _whole_limit_px(graph: Path) -> int:
    """Input pixels whose activations fit into this machine's share of memory."""
    import onnx

    from odm_deploy.lowering.activation_memory import activation_bytes_per_px

    try:
        # The engine has read this file already, and said what is wrong with it; a plan may do without.
        per_px = activation_bytes_per_px(onnx.load(str(graph))) if graph.is_file() else None
    except Exception as error:
        raise InputError(f"cannot read {graph}", why=f"{type(error).__name__}: {error}") from error
    return int(MEMORY_SHARE * _memory_bytes() / (per_px or ASSUMED_BYTES_PER_PX))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return ASSUMED_MEMORY_BYTES
