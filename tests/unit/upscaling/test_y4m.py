"""y4m through pipes, against FFmpeg's own reader, writer and colour conversion (PyAV)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.upscaling.luma_chroma import from_rgb, to_rgb
from odm_deploy.upscaling.y4m import MAGIC, Y4m, read_header

av = pytest.importorskip("av")
BT709, BT601, LIMITED, FULL = 1, 5, 1, 2


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours of all kinds; smooth, so that none lies outside what luma and chroma can hold."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def read(stream: io.BytesIO) -> tuple[Y4m, list[np.ndarray]]:
    header = read_header(stream, stream.read(len(MAGIC)))
    return header, list(header.read(stream))


@pytest.mark.parametrize("size", [(48, 64), (720, 16)], ids=["BT.601", "BT.709"])
def test_what_ffmpeg_writes_is_read_and_the_other_way_round(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    matrix = BT709 if height >= 720 else BT601
    pictures = [picture(height, width, seed) for seed in range(3)]
    path = tmp_path / "in.y4m"
    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        video = container.add_stream("wrapped_avframe", rate=12)
        video.width, video.height, video.pix_fmt = width, height, "yuv444p"
        for index, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
                format="yuv444p", dst_colorspace=matrix, dst_color_range=LIMITED
            )
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    header, frames = read(io.BytesIO(path.read_bytes()))
    assert (header.width, header.height) == (width, height)
    assert "F12:1" in header.kept
    for found, rgb in zip(frames, pictures, strict=True):
        # Two roundings to 8 bits lie between.
        assert np.abs(found.astype(int) - rgb).max() <= 3
        assert np.abs(found.astype(int) - rgb).mean() < 0.8
    # Back: FFmpeg reads the stream, and the colours it finds are those.
    out = io.BytesIO(header.header)
    out.seek(0, io.SEEK_END)
    for rgb in pictures:
        header.write(out, rgb)
    (tmp_path / "out.y4m").write_bytes(out.getvalue())
    with av.open(str(tmp_path / "out.y4m")) as container:
        assert container.streams.video[0].average_rate == 12
        decoded = [
            frame.reformat(format="rgb24", src_colorspace=matrix, src_color_range=LIMITED).to_ndarray()
            for frame in container.decode(video=0)
        ]
    assert len(decoded) == 3
    for found, rgb in zip(decoded, pictures, strict=True):
        assert np.abs(found.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("height", [10, 720])
def test_primaries_have_the_values_of_the_standards(height: int, full_range: bool) -> None:
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (height, 2, 3))
    white = np.full((height, 2, 3), 255, np.uint8)
    expected = {(10, False): (81, 90, 240), (720, False): (63, 102, 240)}  # BT.601 and BT.709, 8 bits
    luma, low, high = from_rgb(red, full_range=full_range)[:, 0, 0]
    if not full_range:
        assert (luma, low, high) == expected[height, full_range]
    assert list(from_rgb(white, full_range=full_range)[:, 0, 0]) == [255 if full_range else 235, 128, 128]
    np.testing.assert_allclose(to_rgb(from_rgb(red, full_range=full_range), full_range=full_range), red, atol=2)


def test_the_header_keeps_rate_and_aspect_and_tells_the_range() -> None:
    given = Y4m.of_header(b"YUV4MPEG2 W6 H4 F30000:1001 Ip A4:3 C444 XYSCSS=444 XCOLORRANGE=FULL")
    assert given.full_range
    larger = given.enlarged(4).header
    assert larger == b"YUV4MPEG2 W24 H16 F30000:1001 Ip A4:3 C444 XCOLORRANGE=FULL\n"
    assert Y4m.of_header(larger.rstrip()) == given.enlarged(4)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"YUV4MPEG2 W6 H4 F25:1 C420jpeg", "C420jpeg.*-pix_fmt yuv444p"),
        (b"YUV4MPEG2 W6 H4 F25:1", "C420.*-pix_fmt yuv444p"),
        (b"YUV4MPEG2 W6 H4 C444p10", "C444p10.*-pix_fmt yuv444p"),
        (b"YUV4MPEG2 W6 H4 It C444", "interlaced.*bwdif"),
        (b"YUV4MPEG2 W99999 H99999 C444", "limit"),
        (b"YUV4MPEG2 W0 H4 C444", "its header is"),
        (b"YUV4MPEG2 Wx H4 C444", "its header is"),
        (b"YUV4MPEG3 W6 H4 C444", "its header is"),
        (b"YUV4MPEG2 \xff\xfe", "its header is"),
    ],
)
def test_other_headers_are_refused(header: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Y4m.of_header(header)


def test_a_stream_that_ends_within_a_frame_is_an_error_behind_the_whole_frames() -> None:
    format_ = Y4m(6, 4)
    stream = io.BytesIO()
    for seed in range(2):
        format_.write(stream, picture(4, 6, seed))
    frames = format_.read(io.BytesIO(stream.getvalue()[:-5]))
    assert next(frames).shape == (4, 6, 3)
    with pytest.raises(InputError, match="ends within frame 1: 67 of its 72 bytes"):
        next(frames)
    with pytest.raises(InputError, match="breaks off after frame 0"):
        next(format_.read(io.BytesIO(b"frame\n" + bytes(72))))
