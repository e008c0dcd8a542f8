"""PNG files of 16 bits a sample, all of them: Pillow decodes such files, but keeps 16 bits of gray ones only.

Its decoder learns the order of a sample's bytes by a "raw mode", and of colours keeps the upper byte only. Read once as
what the file is, the upper bytes are left; read once more as if its bytes were swapped, the lower ones are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps

_LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Raw mode of a file -> the one by which the lower bytes of its samples are kept instead of the upper ones."""
_GRAY_ALPHA, _FOUR_BYTES = "LA;16B", "RGBA"
"""Gray with alpha takes four bytes a pixel, which an 8-bit raw mode keeps in one pass."""


def is_deep(opened: PillowImage.Image) -> bool:
    """Whether this is a PNG of which `deep_samples` reads more than Pillow by itself would."""
    return opened.format == "PNG" and _raw_mode(opened) in (*_LOWER_BYTES, _GRAY_ALPHA)


def deep_samples(opened: PillowImage.Image, reopen: Callable[[], ImageFile.ImageFile]) -> NDArray[np.uint16]:
    """Decode a PNG of 16 bits a sample.

    Args:
        opened: the file, opened; it is not read from.
        reopen: opens it anew.

    Returns:
        uint16 [H, W, C], upright, with C = 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha).

    Raises:
        Whatever Pillow raises on broken files.
    """
    raw_mode = _raw_mode(opened)
    if raw_mode == _GRAY_ALPHA:
        pairs = _decoded(reopen, _FOUR_BYTES)
        return _joined(pairs[..., 0::2], pairs[..., 1::2])
    return _joined(_decoded(reopen, raw_mode), _decoded(reopen, _LOWER_BYTES[raw_mode]))


def _raw_mode(opened: PillowImage.Image) -> str:
    tiles: list[Any] = getattr(opened, "tile", [])
    return str(tiles[0].args) if tiles else ""


def _decoded(reopen: Callable[[], ImageFile.ImageFile], raw_mode: str) -> NDArray[np.uint8]:
    with reopen() as opened:
        opened.tile = [tile._replace(args=raw_mode) for tile in opened.tile]
        return np.asarray(ImageOps.exif_transpose(opened))


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    samples = upper.astype(np.uint16)
    samples <<= 8
    samples |= lower
    return samples
