"""YUV4MPEG2 through pipes: frames whose header says their size, as `ffmpeg -f yuv4mpegpipe -pix_fmt yuv444p` writes.

Format: https://wiki.multimedia.cx/index.php/YUV4MPEG2. Full-resolution chroma only: ffmpeg, at both ends, knows better
how to resample it. The format names no colour matrix, so both ends go by what players assume at their height.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import MAX_PIXELS
from odm_deploy.upscaling.luma_chroma import from_rgb, to_rgb
from odm_deploy.upscaling.pipes import read_fully, write_bytes

MAGIC = b"YUV4MPEG2"
_LONGEST_LINE = 1024
_PROGRESSIVE = ("", "p", "?")


@dataclass(frozen=True)
class Y4m:
    """Frames of one stream; what its header says."""

    width: int
    height: int
    full_range: bool = False
    """Whether samples use 0 to 255, rather than 16 to 235 and 240."""
    kept: tuple[str, ...] = ()
    """Frame rate, aspect ratio and the like, as they came: scaling changes none of them."""

    @classmethod
    def of_header(cls, line: bytes) -> Self:
        """What the stream's first line says, without its end.

        Raises:
            InputError: not such a line, or video that is interlaced, too large, or not 8 bits of 4:4:4.
        """
        name, *fields = line.decode("ascii", errors="replace").split(" ")
        values = {field[0]: field[1:] for field in fields if field}
        what = "cannot read y4m video"
        width, height = values.get("W", ""), values.get("H", "")
        if name.encode() != MAGIC or not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise InputError(what, why=f"its header is {line[:80]!r}", fix="write it with ffmpeg -f yuv4mpegpipe")
        if int(width) * int(height) > MAX_PIXELS:
            raise InputError(what, why=f"{width}x{height} is more than the limit of {MAX_PIXELS} pixels")
        if values.get("C", "420") != "444":
            why = f"its frames are C{values.get('C', '420')}, and C444 is read"
            raise InputError(what, why=why, fix="add -pix_fmt yuv444p to the ffmpeg that writes it")
        if values.get("I", "") not in _PROGRESSIVE:
            raise InputError(what, why="it is interlaced", fix="add -vf bwdif to the ffmpeg that writes it")
        kept = tuple(field for field in fields if field[:1] in ("F", "A", "I"))
        return cls(int(width), int(height), "COLORRANGE=FULL" in _extensions(fields), kept)

    @property
    def header(self) -> bytes:
        """The stream's first line."""
        colour_range = "XCOLORRANGE=FULL" if self.full_range else "XCOLORRANGE=LIMITED"
        fields = (MAGIC.decode(), f"W{self.width}", f"H{self.height}", *self.kept, "C444", colour_range)
        return " ".join(fields).encode() + b"\n"

    def enlarged(self, scale: int) -> Self:
        """The same video, `scale` times as large."""
        return replace(self, width=self.width * scale, height=self.height * scale)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} y4m"

    def read(self, stream: BinaryIO) -> Generator[NDArray[np.uint8]]:
        """Yield the frames behind the header as uint8 [height, width, 3] RGB.

        Raises:
            InputError: something else than a frame, or the end within one.
        """
        count = 0
        while mark := stream.readline(_LONGEST_LINE):
            if mark.rstrip(b"\n").split(b" ")[0] != b"FRAME":
                why = f"{mark[:20]!r} stands where a frame should begin"
                raise InputError(f"y4m video breaks off after frame {count}", why=why)
            data = read_fully(stream, 3 * self.width * self.height)
            if len(data) < 3 * self.width * self.height:
                why = f"{len(data)} of its {3 * self.width * self.height} bytes came"
                raise InputError(f"y4m video ends within frame {count}", why=why, fix="see what its writer said")
            planes = np.frombuffer(data, np.uint8).reshape(3, self.height, self.width)
            yield to_rgb(planes, full_range=self.full_range)
            count += 1

    def write(self, stream: BinaryIO, rgb: NDArray[np.uint8]) -> None:
        """Write one frame, uint8 [height, width, 3] RGB. Raises OdmError where nobody reads any more."""
        write_bytes(stream, b"FRAME\n", from_rgb(rgb, full_range=self.full_range).data)


def read_header(stream: BinaryIO, begun: bytes) -> Y4m:
    """Read the rest of a header of which `begun` has been read. Raises InputError as `Y4m.of_header`."""
    return Y4m.of_header((begun + stream.readline(_LONGEST_LINE)).rstrip(b"\n"))


def _extensions(fields: list[str]) -> set[str]:
    """What the header's X fields, which programs may add, say."""
    return {field[1:].upper() for field in fields if field.startswith("X")}
