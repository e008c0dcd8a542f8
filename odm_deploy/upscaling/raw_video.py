"""Raw video through pipes: frames without any header, as `ffmpeg -f rawvideo` writes and reads them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, OdmError
from odm_deploy.imaging.reading import MAX_PIXELS
from odm_deploy.pipeline import ahead, map_ahead

PIXEL_FORMATS = ("rgb24", "bgr24")
"""Channel orders, by ffmpeg's names; both are 8 bits a sample, three samples a pixel."""


def upscale_stream(
    source: BinaryIO,
    sink: BinaryIO,
    upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    size: tuple[int, int],
    pixel_format: str,
) -> int:
    """Upscale frame after frame from one stream to another; reading, upscaling and writing overlap.

    Args:
        source: frames as `read_frames` takes them.
        sink: where larger ones go.
        upscale: uint8 [H, W, 3] RGB -> uint8 [scale*H, scale*W, 3]; called from one thread.
        size: width and height of the frames that come, in pixels.
        pixel_format: one of `PIXEL_FORMATS`.

    Returns:
        How many frames there were.

    Raises:
        InputError: the frames are too large, or the stream ends within a frame.
        OdmError: the program at the other end has gone.
    """
    count = 0
    with closing(map_ahead(upscale, ahead(read_frames(source, *size, pixel_format)))) as frames:
        for count, frame in enumerate(frames, 1):  # noqa: B007 - returned below
            write_frame(sink, frame, pixel_format)
    sink.flush()
    return count


def read_frames(stream: BinaryIO, width: int, height: int, pixel_format: str) -> Generator[NDArray[np.uint8]]:
    """Yield frames until the stream ends, which holds one after the other, row by row.

    Yields:
        uint8 [height, width, 3] RGB, writable.

    Raises:
        InputError: the frames are too large, or the stream ends within a frame.
    """
    if width * height > MAX_PIXELS:
        why = f"{width}x{height} is {width * height} pixels, more than the limit of {MAX_PIXELS}"
        raise InputError("cannot read raw video", why=why, fix="check --size")
    frame_bytes = width * height * 3
    count = 0
    while data := _read_fully(stream, frame_bytes):
        if len(data) < frame_bytes:
            raise InputError(
                f"raw video ends within frame {count}",
                why=f"{len(data)} of the {frame_bytes} bytes of {width}x{height} {pixel_format} came",
                fix="give the --size and --pix-fmt of what is piped in",
            )
        yield _swapped(np.frombuffer(data, np.uint8).reshape(height, width, 3), pixel_format)
        count += 1


def write_frame(stream: BinaryIO, rgb: NDArray[np.uint8], pixel_format: str) -> None:
    """Write one frame, uint8 [H, W, 3] RGB.

    Raises:
        OdmError: the program at the other end has gone.
    """
    try:
        stream.write(_swapped(rgb, pixel_format).data)
        # Whoever reads may be waiting for this very frame.
        stream.flush()
    except BrokenPipeError as error:
        why = "the program that reads it has ended"
        raise OdmError("cannot write raw video", why=why, fix="see what that program said") from error


def _swapped(pixels: NDArray[np.uint8], pixel_format: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[..., ::-1] if pixel_format == "bgr24" else pixels)


def _read_fully(stream: BinaryIO, size: int) -> bytearray:
    """`size` bytes, or fewer where the stream ends first: a pipe hands over as little as it likes."""
    data = bytearray(size)
    filled = 0
    with memoryview(data) as view:
        # readinto of a buffered stream blocks until it has all; an unbuffered one returns what is there.
        while filled < size and (got := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
            filled += got
    del data[filled:]
    return data
