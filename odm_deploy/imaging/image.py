"""One image in memory, with what its file said about it besides the pixels."""

from __future__ import annotations

from dataclasses import dataclass

from odm_deploy.imaging.pixels import Bits, Pixels, bits_of


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image, upright (its EXIF orientation is applied)."""

    rgb: Pixels
    """uint8 [H, W, 3] in 0..255, or uint16 in 0..65535; the three channels of a grayscale file are equal."""

    alpha: Pixels | None = None
    """[H, W] of the same type; None where the file has no alpha channel or is opaque everywhere."""

    gray: bool = False
    """The file holds a single luminance channel."""

    icc_profile: bytes | None = None
    """The file's RGB colour profile, to be written back beside the upscaled pixels."""

    @property
    def bits(self) -> Bits:
        """Of a sample."""
        return bits_of(self.rgb)

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return self.rgb.shape[1]
