"""PNG files written a few rows at a time, so that an image never has to be in memory whole.

Every row is stored as differences to its neighbours (PNG 3rd edition, section 9): the writer takes whichever of the
filters Sub, Up and Paeth leaves the smallest ones. Deflate then only looks for runs: what repeats elsewhere in a
photograph is too rare to pay for the search, which takes most of the time of a usual PNG encoder.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.pixels import Pixels, bits_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""Channels -> PNG's number for gray, RGB and RGBA."""
_SUB, _UP, _PAETH = 1, 2, 4
_LARGEST_SIDE = 2**31 - 1
_CHUNK_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 17
"""What is filtered at a time: what stays in the processor's cache takes half the time of what does not."""


def write_png(
    destination: Path | str | BinaryIO,
    bands: Iterable[Pixels],
    height: int,
    *,
    icc_profile: bytes | None = None,
) -> None:
    """Write an image as its rows come: to a file whole or not at all, to a stream at once.

    Args:
        destination: a path, whose folders are made, or a stream.
        bands: [n, W, C], from top to bottom, all uint8 or all uint16, with C as `PngWriter` takes it.
        height: of the image, in pixels: the sum of the bands' n.
        icc_profile: the colour profile to store.

    Raises:
        InputError: PNG cannot hold an image this large, rows are missing or too many, or the disk refuses.
        Whatever `bands` raises.
    """
    if isinstance(destination, (Path, str)):
        try:
            with atomic_path(destination) as temporary, temporary.open("wb") as stream:
                write_png(stream, bands, height, icc_profile=icc_profile)
        except OSError as error:
            raise InputError(f"cannot write image {destination}", why=str(error), fix="choose another place") from error
        return
    writer: PngWriter | None = None
    for band in bands:
        if writer is None:
            _, width, channels = band.shape
            writer = PngWriter(destination, height, width, channels, bits=bits_of(band), icc_profile=icc_profile)
        writer.write(band)
    if writer is None:
        raise InputError("cannot write a PNG", why="it has no pixels")
    writer.close()


class PngWriter:
    """Writes one image, top to bottom; `close` it when all rows are there."""

    def __init__(
        self,
        stream: BinaryIO,
        height: int,
        width: int,
        channels: int,
        *,
        bits: int = 8,
        icc_profile: bytes | None = None,
    ) -> None:
        """Write what comes before the pixels: 1 channel is gray, 3 are RGB, 4 RGB with alpha, of 8 or 16 bits each.

        Raises:
            InputError: PNG cannot hold an image this large.
        """
        if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
            raise InputError(f"cannot write a PNG of {width}x{height} pixels", why=f"1..{_LARGEST_SIDE} a side fit")
        self._stream = stream
        self._rows_left = height
        self._shape = (width, channels)
        self._sample = np.dtype("u1" if bits == 8 else ">u2")
        self._pixel_bytes = channels * self._sample.itemsize
        self._above = np.zeros(width * self._pixel_bytes, np.uint8)
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self._ready = bytearray()
        stream.write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0))
        if icc_profile is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))

    def write(self, rows: Pixels) -> None:
        """Append rows of the image, [n, width, channels] of uint8 or, with 16 bits, uint16.

        Raises:
            InputError: they have another shape or type, or are more than the image has left.
        """
        if rows.shape[1:] != self._shape or len(rows) > self._rows_left or rows.itemsize != self._sample.itemsize:
            raise InputError(
                "cannot write these rows of a PNG",
                why=f"{rows.dtype} {list(rows.shape)} came, up to {[self._rows_left, *self._shape]} of "
                f"{8 * self._sample.itemsize} bits are left",
            )
        step = max(1, _BLOCK_BYTES // len(self._above))
        for first in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[first : first + step], self._sample)
            samples = block.view(np.uint8).reshape(len(block), -1)
            self._ready += self._deflate.compress(_filtered(samples, self._above, self._pixel_bytes).data)
            self._above = samples[-1].copy()
            if len(self._ready) >= _CHUNK_BYTES:
                self._flush()
        self._rows_left -= len(rows)

    def close(self) -> None:
        """Write what comes after the pixels.

        Raises:
            InputError: rows are missing.
        """
        if self._rows_left:
            raise InputError("cannot finish a PNG", why=f"{self._rows_left} rows are missing")
        self._ready += self._deflate.flush()
        self._flush()
        self._chunk(b"IEND", b"")

    def _flush(self) -> None:
        self._chunk(b"IDAT", self._ready)
        self._ready = bytearray()

    def _chunk(self, kind: bytes, data: bytes | bytearray) -> None:
        check = zlib.crc32(data, zlib.crc32(kind))
        self._stream.write(struct.pack(">I", len(data)) + kind)
        self._stream.write(data)
        self._stream.write(struct.pack(">I", check))


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """Rows [n, b] as differences, each after the number of its filter: [n, 1 + b]; `above` is the row before them."""
    up = np.concatenate([above[None], rows[:-1]])
    left, up_left = _shifted(rows, pixel), _shifted(up, pixel)
    candidates = {_SUB: rows - left, _UP: rows - up, _PAETH: rows - paeth_predictor(left, up, up_left)}
    # Bytes wrap: 255 is a difference of -1. The smallest sum of magnitudes is what compresses best, as a rule.
    costs = [np.minimum(each, np.negative(each)).sum(axis=1, dtype=np.uint32) for each in candidates.values()]
    numbers = np.array(list(candidates), np.uint8)[np.argmin(costs, axis=0)]
    result = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    result[:, 0] = numbers
    for number, differences in candidates.items():
        # Photographs mostly get one filter throughout; picking all rows by index takes far longer than copying them.
        those = slice(None) if (numbers == number).all() else numbers == number
        result[those, 1:] = differences[those]
    return result


def _shifted(rows: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """What lies one pixel to the left of every byte; zeros in front of the first."""
    result = np.zeros_like(rows)
    result[:, pixel:] = rows[:, :-pixel]
    return result


def paeth_predictor(left: NDArray[np.uint8], up: NDArray[np.uint8], up_left: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Whichever neighbour is nearest to left + up - up_left; ties go to left, then to up (section 9.4).

    up_left is nearest only where it lies between the other two, and its distance then is the difference of theirs. So
    bytes suffice, of which a processor handles many at a time; and choices are made by masks of bits, because numpy's
    `where` takes longer than all the rest.
    """
    from_left = np.maximum(up, up_left) - np.minimum(up, up_left)
    from_up = np.maximum(left, up_left) - np.minimum(left, up_left)
    between = _mask((left > up_left) != (up > up_left))
    from_up_left = (np.maximum(from_left, from_up) - np.minimum(from_left, from_up)) | ~between
    nearest = _chosen(_mask(from_up <= from_up_left), up, up_left)
    return _chosen(_mask(from_left <= np.minimum(from_up, from_up_left)), left, nearest)


def _mask(condition: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """255 where it holds, else 0."""
    return np.negative(condition.view(np.uint8))


def _chosen(mask: NDArray[np.uint8], one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`one` where the mask is 255, `other` where it is 0."""
    return other ^ ((one ^ other) & mask)
