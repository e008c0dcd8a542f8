"""Raw frames through pipes: in order, whole, and clear words when either end goes away."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest

from odm_deploy.errors import InputError, OdmError
from odm_deploy.upscaling.raw_video import PIXEL_FORMATS, RawVideo


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 4, 6, 3), np.uint8)


class Trickle(io.BytesIO):
    """A pipe that hands over a few bytes at a time."""

    def readinto(self, buffer) -> int:
        part = self.read(min(len(buffer), 7))
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_frames_come_and_go_unchanged(pixel_format):
    given, sink = frames(5), io.BytesIO()
    rgb = given if pixel_format == "rgb24" else given[..., ::-1]
    seen = list(RawVideo(6, 4, pixel_format).read(Trickle(given.tobytes())))
    np.testing.assert_array_equal(seen, rgb)
    for frame in seen:
        RawVideo(6, 4, pixel_format).write(sink, frame)
    assert sink.getvalue() == given.tobytes()


def test_no_bytes_are_no_frames():
    assert list(RawVideo(6, 4, "rgb24").read(io.BytesIO())) == []


def test_a_stream_that_ends_within_a_frame_is_an_error_behind_the_whole_frames():
    stream = RawVideo(6, 4, "rgb24").read(io.BytesIO(frames(2).tobytes()[:-10]))
    np.testing.assert_array_equal(next(stream), frames(2)[0])
    with pytest.raises(InputError, match="ends within frame 1"):
        next(stream)


def test_frames_beyond_reason_are_refused_before_they_are_allocated():
    with pytest.raises(InputError, match="limit"):
        next(RawVideo(99999, 99999, "rgb24").read(io.BytesIO(b"abc")))


def test_y4m_is_not_taken_for_raw_frames():
    with pytest.raises(InputError, match=r"y4m.*leave --size out"):
        next(RawVideo(6, 4, "rgb24").read(io.BytesIO(b"YUV4MPEG2 W6 H4 F25:1 C444\nFRAME\n" + bytes(72))))


def test_a_reader_that_goes_away_is_named():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as sink, pytest.raises(OdmError, match="has ended"):
        RawVideo(6, 4, "rgb24").write(sink, frames(1)[0])
