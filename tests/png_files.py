"""16-bit PNG files by and for a second implementation, FFmpeg's, and of the kinds that it does not write."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_FORMATS = {1: "gray16be", 3: "rgb48be", 4: "rgba64be"}
_INTERLACED = 1 << 18


def plain_png(path: Path, samples: NDArray[np.uint16], extra: tuple[tuple[bytes, bytes], ...] = ()) -> Path:
    """Write [H, W, C] without any filter; `extra` chunks come in front of the pixels."""
    height, width, channels = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    pixels = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    chunks = ((b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file, with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ffmpeg_png(path: Path, samples: NDArray[np.uint16], *, interlaced: bool = False) -> Path:
    """Write [H, W, C], C of 1, 3 or 4, by FFmpeg, every row with the filter that suits it."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    pixel_format = _FORMATS[samples.shape[2]]
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = samples.shape[:2]
    encoder.pix_fmt, encoder.options = pixel_format, {"pred": "mixed"}
    if interlaced:
        encoder.flags |= _INTERLACED
    array = samples[..., 0] if samples.shape[2] == 1 else samples
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=pixel_format)
    frame.pts, encoder.time_base = 0, Fraction(1)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def ffmpeg_samples(path: Path) -> NDArray[np.uint16]:
    """What FFmpeg reads of a 16-bit PNG: [H, W, C] with C of 1, 3 or 4."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path)) as opened:
        frame = next(opened.decode(video=0))
        assert frame.format.name in _FORMATS.values(), "these are not 16 bits a sample"
        return np.atleast_3d(frame.to_ndarray())
