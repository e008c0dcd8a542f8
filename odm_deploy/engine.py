"""`Engine`: images in, upscaled images out, from a bundle, on the fastest runtime this machine has. No torch.

>>> with Engine.open("model/") as engine:      # doctest: +SKIP
...     large = engine.upscale(small)          # uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3]
...     finer = engine.upscale(small, bits=16)  # or uint16: whatever lies between two 8-bit steps is kept

Threads may share an engine. With one context their images take turns; with more, as many are under way at once:

>>> Engine.open("model/", options=RuntimeOptions(contexts=2))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from queue import LifoQueue
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from odm_deploy.closable import Closable
from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.blending import blended_bands
from odm_deploy.imaging.pixels import PIXEL_TYPES, Bits, Pixels, from_network, to_network
from odm_deploy.imaging.tiling import Track, join_bands, tiled_bands
from odm_deploy.manifest import Manifest, manifest_beside
from odm_deploy.runtimes.base import Runtime, RuntimeOptions, host_array
from odm_deploy.runtimes.dlpack import CPU, CUDA_HOST, SupportsDlpack
from odm_deploy.runtimes.registry import open_runtime


class Engine(Closable):
    """A bundle opened for upscaling. Threads may share one, and close it from any of them."""

    def __init__(self, runtime: Runtime, manifest: Manifest | None = None, *, contexts: int = 1) -> None:
        """Wrap an open runtime, which the engine closes from now on. Most callers want `Engine.open`.

        Args:
            runtime: runs the model.
            manifest: what the bundle says about itself.
            contexts: how many images may be under way at once.
        """
        self._runtimes = [runtime, *(runtime.another() for _ in range(contexts - 1))]
        # The one used last first: it has the shapes of the last images bound.
        self._idle: LifoQueue[Runtime] = LifoQueue()
        for each in self._runtimes:
            self._idle.put(each)
        self.runtime = runtime
        """Where the model runs; `engine.runtime.describe()` tells all about it."""
        self.manifest = manifest
        """What the bundle says about itself; None for a bare model.onnx."""

    @classmethod
    def open(cls, bundle: Path | str, runtime: str | None = None, options: RuntimeOptions | None = None) -> Self:
        """Open a bundle, a model.onnx or an engine.plan.

        Args:
            bundle: what `odm-deploy export` wrote, or one of the files in it.
            runtime: a runtime's name; None takes the fastest that works here: TensorRT where the plan and its GPU
                are, else OpenVINO, else ONNX Runtime.
            options: threads, precision, and how many images may be under way at once.

        Raises:
            InputError: the bundle is missing or damaged.
            MissingError: no runtime that could run it is installed; the message holds the pip command.
            UsageError: there is no runtime of that name, or it cannot honour an option.
        """
        contexts = 1 if options is None else options.contexts
        return cls(open_runtime(bundle, runtime, options), manifest_beside(bundle), contexts=contexts)

    @overload
    def upscale(
        self, rgb: Pixels | SupportsDlpack, *, tile: int = 0, bits: Literal[8] = 8, track: Track | None = None
    ) -> NDArray[np.uint8]: ...
    @overload
    def upscale(
        self, rgb: Pixels | SupportsDlpack, *, tile: int = 0, bits: Bits, track: Track | None = None
    ) -> Pixels: ...
    def upscale(
        self, rgb: Pixels | SupportsDlpack, *, tile: int = 0, bits: Bits = 8, track: Track | None = None
    ) -> Pixels:
        """Upscale one image.

        Args:
            rgb: uint8 or uint16 [H, W, 3] in host memory: numpy, or whatever exports DLPack. Models that take uint8 get
                uint16 rounded.
            tile: side of square tiles in input pixels, for images that do not fit into memory whole; 0 runs the image
                whole. Tiles overlap by the network's receptive radius, so the result is that of the whole image; where
                that radius is unbounded, they fade into each other, and the result is near it.
            bits: of the result's samples.
            track: shows progress, one step a tile.

        Returns:
            uint8 [scale*H, scale*W, 3], with 16 bits uint16; rounded half to even and clamped.

        Raises:
            InputError: not such an image, or a size the engine was not built for.
            UsageError: tiles too small for the network, 16 bits of one that returns 8, or tiles of a bare model, which
                does not tell what it needs.
        """
        images = _as_batch(rgb)
        bands = self.upscale_bands(rgb, tile=tile, bits=bits, track=track)
        return next(bands) if tile == 0 else join_bands(bands, images.shape[2] * self._tiling(tile)[1])

    def upscale_bands(
        self, rgb: Pixels | SupportsDlpack, *, tile: int = 0, bits: Bits = 8, track: Track | None = None
    ) -> Generator[Pixels]:
        """The same, from top to bottom, a row of tiles at a time: for results too large to be held whole.

        Args:
            rgb: see `upscale`.
            tile: see `upscale`; with 0 there is one band.
            bits: see `upscale`.
            track: see `upscale`.

        Yields:
            uint8 or uint16 [h, scale*W, 3], whose heights add up to scale*H.

        Raises:
            InputError: as `upscale`.
            UsageError: as `upscale`.
        """
        images = _as_batch(rgb)
        run = self._runner(bits)
        if tile == 0:
            yield _as_image(run(images))
            return
        radius, scale = self._tiling(tile)
        if radius is None:
            bands = blended_bands(run, images, tile=tile, scale=scale, track=track)
        else:
            bands = tiled_bands(run, images, tile=tile, overlap=radius, scale=scale, track=track)
        for band in bands:
            yield _as_image(band)

    @property
    def has_float_edges(self) -> bool:
        """Whether the model takes and returns floats, and so tells more than 256 levels apart."""
        return all(edge.dtype != np.uint8 for edge in self.runtime.single_image_edges())

    def require_float_edges(self) -> None:
        """Refuse results of 16 bits a sample where the model has 8.

        Raises:
            UsageError: it takes or returns uint8.
        """
        if not self.has_float_edges:
            why = "this model takes and returns uint8"
            raise UsageError("no results of 16 bits a sample", why=why, fix="export it without --io uint8")

    def upscale_tensor(
        self, images: SupportsDlpack, *, out: SupportsDlpack | None = None, stream: int | None = None
    ) -> SupportsDlpack:
        """Upscale a batch as the model itself takes and gives it, wherever it lies: nothing is converted.

        Tensors in GPU memory stay there (TensorRT only):

        >>> large = torch.from_dlpack(engine.upscale_tensor(frames.cuda()))     # doctest: +SKIP

        Args:
            images: a contiguous tensor exporting DLPack, of the type and layout in `engine.runtime.inputs`.
            out: on a GPU, the tensor to write to; None allocates a new one.
            stream: on a GPU, the handle of the CUDA stream to queue the work on (torch: `stream.cuda_stream`); the
                call then returns at once. None waits for the result.

        Returns:
            `out`, or a new array that exports DLPack, in the same kind of memory; numpy on the host.

        Raises:
            InputError: not such a tensor, a size the engine was not built for, or memory the runtime cannot reach.
            UsageError: `out` or `stream` with a tensor in host memory.
        """
        source, sink = self.runtime.single_image_edges()
        place = getattr(images, "__dlpack_device__", None)
        on_host = place is None or place()[0] in (CPU, CUDA_HOST)
        if on_host and (out is not None or stream is not None):
            raise UsageError("`out` and `stream` need a tensor in GPU memory", why="this one lies in host memory")
        with self._borrowed() as runtime:
            if on_host:
                return runtime.run({source.name: host_array(images, "the images")})[sink.name]
            results = None if out is None else {sink.name: out}
            return runtime.run_on_device({source.name: images}, results, stream)[sink.name]

    def _runner(self, bits: Bits) -> Callable[[Pixels], Pixels]:
        """[N, 3, H, W] -> [N, 3, scale*H, scale*W], channels last in memory. Rounded here, large results stay small."""
        if bits == 16:
            self.require_float_edges()

        def run(images: Pixels) -> Pixels:
            with self._borrowed() as runtime:
                pixels = from_network(runtime.run_rgb(to_network(images)), bits)
            return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

        return run

    @contextmanager
    def _borrowed(self) -> Generator[Runtime]:
        """A runtime nobody else uses meanwhile; waits for one."""
        runtime = self._idle.get()
        try:
            yield runtime
        finally:
            self._idle.put(runtime)

    def _tiling(self, tile: int) -> tuple[int | None, int]:
        """How far the network looks, None for without bound, and its scale."""
        if self.manifest is None:
            raise UsageError(f"tiles of {tile} pixels", why="a bare model does not say how far it looks; open a bundle")
        return self.manifest.receptive_radius_px, self.manifest.scale

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and settings, as plain values."""
        return self.runtime.describe()

    def close(self) -> None:
        """Free the model and its device memory. Images under way are finished first; later ones are refused."""
        for runtime in self._runtimes:
            runtime.close()


def _as_batch(rgb: Pixels | SupportsDlpack) -> Pixels:
    """[H, W, 3] -> a view [1, 3, H, W] of it."""
    pixels = host_array(rgb, "the image")
    if pixels.dtype not in PIXEL_TYPES or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        why = f"it is {pixels.dtype} {pixels.shape}, not uint8 or uint16 [H, W, 3]"
        raise InputError("cannot upscale this image", why=why)
    return pixels.transpose(2, 0, 1)[None]


def _as_image(batch: Pixels) -> Pixels:
    """[1, 3, H, W] -> [H, W, 3]; no copy, where the channels are last in memory already."""
    return np.ascontiguousarray(batch[0].transpose(1, 2, 0))
