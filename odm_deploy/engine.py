"""`Engine`: images in, upscaled images out, from a bundle, on the fastest runtime this machine has. No torch.

>>> with Engine.open("model/") as engine:      # doctest: +SKIP
...     large = engine.upscale(small)          # uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3]
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.tiling import Track, run_tiled
from odm_deploy.manifest import Manifest, manifest_beside
from odm_deploy.runtimes.base import Runtime, RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime


class Engine:
    """A bundle opened for upscaling. Threads may share one: their images take turns on the device."""

    def __init__(self, runtime: Runtime, manifest: Manifest | None = None) -> None:
        """Wrap an open runtime, which the engine closes from now on. Most callers want `Engine.open`."""
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
            options: threads and precision.

        Raises:
            InputError: the bundle is missing or damaged.
            MissingError: no runtime that could run it is installed; the message holds the pip command.
            UsageError: there is no runtime of that name, or it cannot honour an option.
        """
        return cls(open_runtime(bundle, runtime, options), manifest_beside(bundle))

    def upscale(self, rgb: NDArray[np.uint8], *, tile: int = 0, track: Track | None = None) -> NDArray[np.uint8]:
        """Upscale one image.

        Args:
            rgb: uint8 [H, W, 3].
            tile: side of square tiles in input pixels, for images that do not fit into memory whole; 0 runs the image
                whole. Tiles overlap by the network's receptive radius, so the result shows no seams.
            track: shows progress, one step a tile.

        Returns:
            uint8 [scale*H, scale*W, 3], rounded half to even and clamped.

        Raises:
            InputError: not such an image, or a size the engine was not built for.
            UsageError: tiles too small for the network, or a network that looks further than any tile.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise InputError("cannot upscale this image", why=f"it is {rgb.dtype} {rgb.shape}, not uint8 [H, W, 3]")
        images = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32)
        if tile == 0:
            result = self._run(images)
        else:
            overlap, scale = self._tiling(tile)
            result = run_tiled(self._run, images, tile=tile, overlap=overlap, scale=scale, track=track)
        return np.ascontiguousarray(result[0].transpose(1, 2, 0))

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """[N, 3, H, W] in 0..255 -> uint8 [N, 3, scale*H, scale*W]; rounding here keeps large results small."""
        return np.rint(self.runtime.upscale(images)).clip(0, 255).astype(np.uint8)

    def _tiling(self, tile: int) -> tuple[int, int]:
        """The overlap tiles need, and the scale."""
        if self.manifest is None:
            raise UsageError(f"tiles of {tile} pixels", why="a bare model does not say how far it looks; open a bundle")
        if self.manifest.receptive_radius_px is None:
            name = self.manifest.network["name"]
            raise UsageError(f"tiles of {tile} pixels", why=f"{name} looks at the whole image at once", fix="use 0")
        return self.manifest.receptive_radius_px, self.manifest.scale

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and settings, as plain values."""
        return self.runtime.describe()

    def close(self) -> None:
        """Free the model and its device memory."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
