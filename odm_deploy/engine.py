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

from odm_deploy.errors import InputError
from odm_deploy.runtimes.base import Runtime, RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime


class Engine:
    """A bundle opened for upscaling. Threads may share one: their images take turns on the device."""

    def __init__(self, runtime: Runtime) -> None:
        """Wrap an open runtime, which the engine closes from now on. Most callers want `Engine.open`."""
        self.runtime = runtime
        """Where the model runs; `engine.runtime.describe()` tells all about it."""

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
        return cls(open_runtime(bundle, runtime, options))

    def upscale(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Upscale one image.

        Args:
            rgb: uint8 [H, W, 3].

        Returns:
            uint8 [scale*H, scale*W, 3], rounded half to even and clamped.

        Raises:
            InputError: not such an image, or a size the engine was not built for.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise InputError("cannot upscale this image", why=f"it is {rgb.dtype} {rgb.shape}, not uint8 [H, W, 3]")
        images = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32)
        result = self.runtime.upscale(images)[0]
        return np.ascontiguousarray(np.rint(result).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

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
