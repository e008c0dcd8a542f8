"""How a model takes and gives images: the one description of a graph's edges.

A bundle's manifest states it. A bare file does not: there it is told from the names and shapes of its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle.manifest import Manifest
from odm_deploy.errors import InputError
from odm_deploy.imaging.pixels import round_to_uint8

Layout = Literal["nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]
BGR_SUFFIX = "_bgr"
"""How `export --order bgr` lets the names of the graph's edges end.

A name is all that a TensorRT plan keeps of its ONNX file: by it the order is known even where a plan lies alone.
"""


@dataclass(frozen=True)
class ImageFormat:
    """Batches of images with three channels and values in 0..255, as one edge of a model has them."""

    type: str
    """numpy's name of the values' type: `float32` or `uint8` in every bundle."""
    layout: Layout = "nchw"
    """`nchw`: [N, 3, H, W]; `nhwc`: [N, H, W, 3]."""
    order: ChannelOrder = "rgb"
    """Which channel comes first."""

    @classmethod
    def stated_in(cls, manifest: Manifest) -> Self | None:
        """What a manifest says about both edges; None for one that does not say.

        Raises:
            InputError: it names a type, layout or order that there is not.
        """
        stated = manifest.onnx
        if "io" not in stated:
            return None
        # Bundles of before `--order` took RGB.
        found = cls(stated["io"], stated.get("layout", "nchw"), stated.get("order", "rgb"))
        known = found.type in ("float32", "uint8") and found.layout in ("nchw", "nhwc")
        if not known or found.order not in ("rgb", "bgr"):
            raise InputError("the manifest is damaged", why=f"it names no known format of images: {found}")
        return found

    @classmethod
    def told_from(cls, name: str, dtype: np.dtype[Any], shape: Sequence[int | None]) -> Self:
        """What can be told from an edge's name, type and shape: the only way for a file without a manifest."""
        channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
        return cls(str(dtype), "nhwc" if channels_last else "nchw", "bgr" if name.endswith(BGR_SUFFIX) else "rgb")

    def from_rgb(self, images: NDArray[Any]) -> NDArray[Any]:
        """Bring images into this type, layout and channel order; C-contiguous.

        Args:
            images: [N, 3, H, W], RGB in 0..255, any dtype. Rounded half to even where this format holds integers.
        """
        ordered = images[:, ::-1] if self.order == "bgr" else images
        ordered = ordered.transpose(0, 2, 3, 1) if self.layout == "nhwc" else ordered
        if self.type == "uint8" and images.dtype != np.uint8:
            ordered = round_to_uint8(ordered)
        return np.ascontiguousarray(ordered, dtype=self.type)

    def as_rgb(self, images: NDArray[Any]) -> NDArray[Any]:
        """A view of images of this format as [N, 3, H, W], RGB in 0..255, of the same type."""
        ordered = images.transpose(0, 3, 1, 2) if self.layout == "nhwc" else images
        return ordered[:, ::-1] if self.order == "bgr" else ordered
