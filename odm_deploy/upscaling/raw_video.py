"""Raw video through pipes: frames without any header, as `ffmpeg -f rawvideo` writes and reads them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import MAX_PIXELS
from odm_deploy.upscaling.pipes import read_fully, write_bytes
from odm_deploy.upscaling.y4m import MAGIC

PIXEL_FORMATS = ("rgb24", "bgr24")
"""Channel orders, by ffmpeg's names; both are 8 bits a sample, three samples a pixel."""


@dataclass(frozen=True)
class RawVideo:
    """Frames of one size and channel order, one after the other, row by row."""

    width: int
    height: int
    pixel_format: str
    """One of `PIXEL_FORMATS`."""
    header: bytes = b""

    def enlarged(self, scale: int) -> Self:
        """The same, `scale` times as large."""
        return replace(self, width=self.width * scale, height=self.height * scale)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.pixel_format}"

    def read(self, stream: BinaryIO) -> Generator[NDArray[np.uint8]]:
        """Yield frames until the stream ends.

        Yields:
            uint8 [height, width, 3] RGB, writable.

        Raises:
            InputError: the frames are too large, the stream ends within a frame, or it says itself what it holds.
        """
        if self.width * self.height > MAX_PIXELS:
            pixels = self.width * self.height
            why = f"{self.width}x{self.height} is {pixels} pixels, more than the limit of {MAX_PIXELS}"
            raise InputError("cannot read raw video", why=why, fix="check --size")
        frame_bytes = self.width * self.height * 3
        count = 0
        while data := read_fully(stream, frame_bytes):
            if count == 0 and data.startswith(MAGIC):
                raise InputError("this is no raw video", why="it is y4m, which knows its size", fix="leave --size out")
            if len(data) < frame_bytes:
                raise InputError(
                    f"raw video ends within frame {count}",
                    why=f"{len(data)} of the {frame_bytes} bytes of {self} came",
                    fix="give the --size and --pix-fmt of what is piped in",
                )
            yield self._swapped(np.frombuffer(data, np.uint8).reshape(self.height, self.width, 3))
            count += 1

    def write(self, stream: BinaryIO, rgb: NDArray[np.uint8]) -> None:
        """Write one frame, uint8 [height, width, 3] RGB. Raises OdmError where nobody reads any more."""
        write_bytes(stream, self._swapped(rgb).data)

    def _swapped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pixels[..., ::-1] if self.pixel_format == "bgr24" else pixels)
