"""Frames from one stream to another: whole, in order, and with clear words where either end goes away."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import OdmError
from odm_deploy.pipeline import ahead, map_ahead

Frame = NDArray[np.uint8]
"""uint8 [H, W, 3] RGB."""


class FrameFormat(Protocol):
    """How frames of one size lie in a stream."""

    @property
    def header(self) -> bytes:
        """What comes before the first frame."""
        ...

    def enlarged(self, scale: int) -> Self:
        """The format of frames `scale` times as large."""
        ...

    def read(self, stream: BinaryIO) -> Generator[Frame]:
        """Yield frames until the stream ends. Raises InputError where it does so within one."""
        ...

    def write(self, stream: BinaryIO, rgb: Frame) -> None:
        """Write one frame."""
        ...


def upscale_stream(
    source: BinaryIO, sink: BinaryIO, upscale: Callable[[Frame], Frame], scale: int, frames: FrameFormat
) -> int:
    """Upscale frame after frame from one stream to another; reading, upscaling and writing overlap.

    Args:
        source: frames, behind their header.
        sink: where larger ones go, behind theirs.
        upscale: uint8 [H, W, 3] RGB -> uint8 [scale*H, scale*W, 3]; called from one thread.
        scale: of `upscale`.
        frames: how frames lie in `source`.

    Returns:
        How many frames there were.

    Raises:
        InputError: the frames are too large, or the stream ends within a frame.
        OdmError: the program at the other end has gone.
    """
    count, larger = 0, frames.enlarged(scale)
    if larger.header:
        write_bytes(sink, larger.header)
    with closing(map_ahead(upscale, ahead(frames.read(source)))) as results:
        for count, frame in enumerate(results, 1):  # noqa: B007 - returned below
            larger.write(sink, frame)
    return count


def read_fully(stream: BinaryIO, size: int) -> bytearray:
    """`size` bytes, or fewer where the stream ends first: a pipe hands over as little as it likes."""
    data = bytearray(size)
    filled = 0
    with memoryview(data) as view:
        # readinto of a buffered stream blocks until it has all; an unbuffered one returns what is there.
        while filled < size and (got := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
            filled += got
    del data[filled:]
    return data


def write_bytes(stream: BinaryIO, *parts: bytes | memoryview) -> None:
    """Write these, and have them sent: whoever reads may be waiting for this very frame.

    Raises:
        OdmError: the program at the other end has gone.
    """
    try:
        for part in parts:
            stream.write(part)
        stream.flush()
    except BrokenPipeError as error:
        why = "the program that reads it has ended"
        raise OdmError("cannot write video", why=why, fix="see what that program said") from error
