"""`Engine`: images in, upscaled images out, from a bundle, on the fastest runtime this machine has. No torch.

>>> with Engine.open("model/") as engine:      # doctest: +SKIP
...     large = engine.upscale(small)          # uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3]
...     finer = engine.upscale(small, bits=16)  # or uint16: whatever lies between two 8-bit steps is kept
...     engine.upscale_to("large.png", read_image("photo.png"))     # with alpha and colour profile, never held whole

Images too large for memory, or for the engine, are cut into tiles. Threads may share an engine. With one context their
images take turns; with more, as many are under way at once:

>>> Engine.open("model/", options=RuntimeOptions(contexts=2))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import Manifest
from odm_deploy.closable import Closable
from odm_deploy.errors import UsageError
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import Bits, Pixels
from odm_deploy.imaging.png import write_png
from odm_deploy.imaging.tile_size import Tiles, whole_limit_px
from odm_deploy.imaging.writing import write_image
from odm_deploy.machine.host import memory_bytes
from odm_deploy.pipeline import ahead
from odm_deploy.progress import Track, untracked
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.dlpack import CPU, CUDA_HOST, SupportsDlpack, host_array
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from odm_deploy.upscaling.pixel_network import PixelNetwork

ArrayLike = Pixels | SupportsDlpack


class Engine(Closable):
    """A bundle opened for images of any size. Threads may share one, and close it from any of them."""

    def __init__(
        self,
        runtime: Runtime,
        manifest: Manifest | None = None,
        *,
        contexts: int = 1,
        tiles: Tiles | None = None,
        bits: Bits | None = None,
    ) -> None:
        """Wrap an open runtime, which the engine closes from now on. Most callers want `Engine.open`.

        Args:
            runtime: runs the model.
            manifest: what the bundle says about itself.
            contexts: how many images may be under way at once.
            tiles: how images are cut; None: not at all.
            bits: see `open`.

        Raises:
            UsageError: 16 bits of a model that takes or returns 8.
        """
        self.runtime = runtime
        """Where the model runs; `engine.runtime.describe()` tells all about it."""
        self.manifest = manifest
        """What the bundle says about itself; None for a bare model.onnx."""
        self.tiles = tiles
        """How images are cut; None for a bare model, which does not tell how far it looks."""
        self._bits: Bits | None = bits
        self._network = PixelNetwork(runtime, tiles, contexts=contexts)
        self._network.check_bits(bits)

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        runtime: str | None = None,
        options: RuntimeOptions | None = None,
        *,
        tile: int | None = None,
        bits: Bits | None = None,
    ) -> Self:
        """Open a bundle, a model.onnx or an engine.plan.

        Args:
            bundle: what `odm-deploy export` wrote, or one of the files in it.
            runtime: a runtime's name; None takes the fastest that works here: TensorRT where the plan and its GPU
                are, else OpenVINO, else ONNX Runtime.
            options: threads, precision, and how many images may be under way at once.
            tile: side of square tiles in input pixels; 0 runs images whole; None decides for each image, by memory
                and by the largest one that the engine was built for. A bare model runs all images whole.
            bits: of the results' samples, 8 or 16. None gives an `Image` its own depth, as far as the model has it,
                and arrays 8.

        Raises:
            InputError: the bundle is missing or damaged.
            MissingError: no runtime that could run it is installed; the message holds the pip command.
            UsageError: there is no runtime of that name, it cannot honour an option, or 16 bits are asked of a model
                that takes or returns 8.
        """
        opened = Bundle.open(bundle)
        if tile is not None and tile < 0:
            raise UsageError(f"tiles of {tile} pixels", fix="give 0 for none, or their side")
        if tile and opened.manifest is None:
            raise UsageError(f"tiles of {tile} pixels", why="a bare model does not say how far it looks; open a bundle")
        # First, because it is what a damaged bundle fails at soonest.
        manifest = opened.manifest
        loaded = open_runtime(opened, runtime, options)
        try:
            tiles = None if manifest is None else _tiles(opened, manifest, loaded, tile)
            return cls(loaded, manifest, contexts=1 if options is None else options.contexts, tiles=tiles, bits=bits)
        except BaseException:
            loaded.close()
            raise

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis.

        Raises:
            UsageError: a bare model, which does not tell.
        """
        if self.manifest is None:
            raise UsageError("the scale is not known", why="a bare model does not tell it", fix="open a bundle")
        return self.manifest.scale

    @property
    def has_float_edges(self) -> bool:
        """Whether the model takes and returns floats, and so tells more than 256 levels apart."""
        return self._network.has_float_edges

    def result_bits(self, image: Image) -> Bits:
        """Of the samples of what `upscale` makes of this image by default."""
        return self._bits or (image.bits if self.has_float_edges else 8)

    def tile_size(self, height: int, width: int) -> int:
        """The tile that an image of this size, in pixels, is cut into by default; 0: none, it is run whole."""
        return 0 if self.tiles is None else self.tiles.side_for(height, width)

    @overload
    def upscale(
        self, image: Image, *, tile: int | None = None, bits: Bits | None = None, track: Track = untracked
    ) -> Image: ...
    @overload
    def upscale(
        self, image: ArrayLike, *, tile: int | None = None, bits: Literal[8], track: Track = untracked
    ) -> NDArray[np.uint8]: ...
    @overload
    def upscale(
        self, image: ArrayLike, *, tile: int | None = None, bits: Bits | None = None, track: Track = untracked
    ) -> Pixels: ...
    def upscale(
        self,
        image: Image | ArrayLike,
        *,
        tile: int | None = None,
        bits: Bits | None = None,
        track: Track = untracked,
    ) -> Image | Pixels:
        """Upscale one image.

        Args:
            image: an `Image`, whose transparency goes through the same network and whose colour profile is kept; or
                its pixels, uint8 or uint16 [H, W, 3] in host memory: numpy, or whatever exports DLPack. Models that
                take uint8 get uint16 rounded.
            tile: as for `open`; None: as it was opened. Tiles overlap by the network's receptive radius, so the result
                is that of the whole image; where that radius is unbounded, they fade into each other, and the result
                is near it.
            bits: as for `open`; None: as it was opened.
            track: shows progress, one step a tile.

        Returns:
            An `Image` for an `Image`; for pixels uint8 [scale*H, scale*W, 3], with 16 bits uint16. Rounded half to
            even and clamped.

        Raises:
            InputError: not such an image, or a size the engine was not built for.
            UsageError: tiles too small for the network, 16 bits of one that returns 8, or tiles of a bare model, which
                does not tell what it needs; or the engine is closed.
        """
        if not isinstance(image, Image):
            return self._network.whole(host_array(image, "the image"), tile, bits or self._bits or 8, track)
        bits = bits or self.result_bits(image)
        alpha = None if image.alpha is None else self._network.whole(_as_rgb(image.alpha), tile, bits)[..., 1]
        return Image(self._network.whole(image.rgb, tile, bits, track), alpha, image.gray, image.icc_profile)

    def upscale_bands(
        self,
        image: Image | ArrayLike,
        *,
        tile: int | None = None,
        bits: Bits | None = None,
        track: Track = untracked,
    ) -> Generator[Pixels]:
        """`upscale` from top to bottom, a row of tiles at a time: for results too large to be held whole.

        Yields:
            uint8 or uint16 [h, scale*W, 3], or 4 with the transparency of an `Image`; the heights add up to scale*H.
        """
        if not isinstance(image, Image):
            yield from self._network.bands(host_array(image, "the image"), tile, bits or self._bits or 8, track)
            return
        bits = bits or self.result_bits(image)
        colours = self._network.bands(image.rgb, tile, bits, track)
        if image.alpha is None:
            yield from colours
            return
        for rgb, alpha in zip(colours, self._network.bands(_as_rgb(image.alpha), tile, bits), strict=True):
            yield np.concatenate([rgb, alpha[..., 1:2]], axis=2)

    def upscale_to(
        self,
        path: Path | str,
        image: Image | ArrayLike,
        *,
        tile: int | None = None,
        bits: Bits | None = None,
        track: Track = untracked,
    ) -> None:
        """`upscale` and `write_image` in one, with the arguments and errors of both.

        PNG is written while the next tiles are computed, so that it is never held whole.
        """
        if not isinstance(image, Image):
            image = Image(host_array(image, "the image"))
        # Whether a gray image stayed gray, and is stored as such, shows after its last row only.
        if self.tiles is None or Path(path).suffix.lower() != ".png" or image.gray:
            write_image(path, self.upscale(image, tile=tile, bits=bits, track=track))
            return
        with closing(ahead(self.upscale_bands(image, tile=tile, bits=bits, track=track), depth=1)) as bands:
            write_png(path, bands, image.height * self.tiles.scale, icc_profile=image.icc_profile)

    def upscale_tensor(
        self, images: SupportsDlpack, *, out: SupportsDlpack | None = None, stream: int | None = None
    ) -> SupportsDlpack:
        """Upscale a batch as the model itself takes and gives it, wherever it lies: nothing is converted.

        Tensors in GPU memory stay there (TensorRT only):

        >>> large = torch.from_dlpack(engine.upscale_tensor(frames.cuda()))     # doctest: +SKIP

        Args:
            images: a contiguous tensor exporting DLPack, of the type and layout in `engine.runtime.inputs`.
            out: on a GPU, the tensor to write to; None allocates a new one.
            stream: on a GPU, the handle of the CUDA stream in whose order to run (torch: `stream.cuda_stream`); the
                call then returns at once. None waits for the result.

        Returns:
            `out`, or a new array that exports DLPack, in the same kind of memory; numpy on the host.

        Raises:
            InputError: not such a tensor, a size the engine was not built for, or memory the runtime cannot reach.
            UsageError: `out` or `stream` with a tensor in host memory; or the engine is closed.
        """
        source, sink = self.runtime.single_image_edges()
        place = getattr(images, "__dlpack_device__", None)
        on_host = place is None or place()[0] in (CPU, CUDA_HOST)
        if on_host and (out is not None or stream is not None):
            raise UsageError("`out` and `stream` need a tensor in GPU memory", why="this one lies in host memory")
        with self._network.pool.borrowed() as runtime:
            if on_host:
                return runtime.run({source.name: host_array(images, "the images")})[sink.name]
            results = None if out is None else {sink.name: out}
            return runtime.run_on_device({source.name: images}, results, stream)[sink.name]

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and settings, as plain values."""
        return self.runtime.describe()

    def close(self) -> None:
        """Free the model and its device memory. Images under way are finished first; later ones are refused."""
        self._network.close()


def _tiles(bundle: Bundle, manifest: Manifest, runtime: Runtime, side: int | None) -> Tiles:
    """How images are cut for a bundle on a runtime, into tiles of `side` or as memory allows."""
    from odm_deploy.lowering.activation_memory import activation_bytes_per_px

    limit = largest = None
    if side is None:
        per_px = None if bundle.onnx_path is None else activation_bytes_per_px(bundle.graph)
        limit = whole_limit_px(memory_bytes(), per_px)
        facts = bundle.engine_facts
        if runtime.model_kind == "plan" and "profile" in facts:
            largest = parse_shapes(str(facts["profile"])).max[2:]
    return Tiles(manifest.scale, manifest.receptive_radius_px, side, limit, largest)


def _as_rgb(alpha: Pixels) -> Pixels:
    """Transparency [H, W] as an image of its own, [H, W, 3], for the same network."""
    return np.repeat(alpha[..., None], 3, axis=2)
