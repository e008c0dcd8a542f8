"""Video files: frames upscaled one by one at their own timestamps, sound copied untouched. Needs PyAV (extra `video`).

A frame's colours pass through RGB and back by the matrix the file names, or by the one that players assume where it
names none; the result always names its own, because the assumption depends on the size, which upscaling changes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError, MissingError
from odm_deploy.files import atomic_path
from odm_deploy.imaging.reading import MAX_PIXELS
from odm_deploy.installing import install_extra
from odm_deploy.kinds_of_files import why_no_file
from odm_deploy.pipeline import ahead, map_ahead
from odm_deploy.progress import Track, counted, untracked
from odm_deploy.upscaling.containers import Damage, Ends, PacketTimes, describe_alike, opened_to_read, reading


@dataclass(frozen=True)
class _Format:
    """What a file of some suffix holds."""

    container: str
    encoder: str
    options: Mapping[str, str]
    crf: int
    """Constant quality that looks lossless: the upscaled detail is the point."""


_H264 = ("libx264", {"preset": "medium"}, 16)
# Without a bit rate of zero, VP9's quality would only be a floor.
_VP9 = ("libvpx-vp9", {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}, 20)
_FORMATS = {
    ".mkv": _Format("matroska", *_H264),
    ".mov": _Format("mov", *_H264),
    ".mp4": _Format("mp4", *_H264),
    ".webm": _Format("webm", *_VP9),
}
VIDEO_SUFFIXES = tuple(_FORMATS)
"""Of the video files that are written."""

# Numbers of ITU-T H.273, which FFmpeg shares.
_BT709, _UNSPECIFIED, _SMPTE170M = 1, 2, 6
_LIMITED_RANGE = 1
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_HD_HEIGHT_PX = 720


@dataclass(frozen=True)
class VideoResult:
    """What was written."""

    frames: int
    width: int
    height: int
    audio_streams: int
    missing_s: float = 0.0
    """Seconds that the file claims and does not hold: it was cut off, by a download, say. 0: it is whole."""
    damaged: int = 0
    """Frames that could not be decoded; those before them are shown until the next one that could."""
    mended: int = 0
    """Frames of which parts could not be decoded; they are shown as the decoder filled them."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """A frame's pixels, uint8 [H, W, 3] RGB, and its time in units of the video stream's time base."""

    rgb: NDArray[np.uint8]
    pts: int


def is_video(path: Path | str) -> bool:
    """Whether `upscale_video` writes files of this name."""
    return Path(path).suffix.lower() in _FORMATS


def check_video(source: Path | str, destination: Path | str) -> None:
    """Check what can be known before any work.

    Raises:
        InputError: there is no such video, or it would be overwritten while it is read.
        MissingError: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise MissingError("video needs PyAV", why="it is not installed", fix=install_extra("video"))
    source, destination = Path(source), Path(destination)
    if why := why_no_file(source):
        raise InputError(f"cannot read video {source}", why=why, fix="give the path of a video file")
    if source.resolve() == destination.resolve():
        raise InputError(f"cannot write {destination}", why="it is the video to read", fix="name another file")


def upscale_video(
    source: Path | str,
    destination: Path | str,
    upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    scale: int,
    *,
    crf: int | None = None,
    track: Track = untracked,
) -> VideoResult:
    """Upscale the first video stream of a file; decoding, upscaling and encoding overlap.

    Video becomes H.264, in .webm VP9 (constant quality, 8 bits); every audio stream is copied as it is, with its
    language; title and chapters stay; subtitles and further video streams are left out. Frames keep their timestamps,
    also where their rate varies. Of a file that was cut off, what is there is upscaled, and frames that cannot be
    decoded are left out; the result says so, and how many could be in part.

    Args:
        source: any file FFmpeg reads.
        destination: ends in .mp4, .mkv, .mov or .webm; whole or not at all.
        upscale: uint8 [H, W, 3] RGB -> uint8 [scale*H, scale*W, 3]; called from one thread.
        scale: of `upscale`.
        crf: the encoder's constant rate factor, 0 (best) to 51; None looks lossless.
        track: shows progress, one step a frame; called with the number of frames the file claims.

    Raises:
        InputError: not a video, one without a frame that can be decoded, or of a kind that would come out wrong: HDR,
            interlaced, rotated by a flag, without timestamps; or the container cannot hold its sound.
        MissingError: PyAV is not installed.
    """
    check_video(source, destination)
    import av
    from av.error import FFmpegError

    source, destination = Path(source), Path(destination)
    try:
        with atomic_path(destination) as temporary, opened_to_read(source) as reader:
            if not reader.streams.video:
                raise InputError(f"cannot read video {source}", why="it has no video stream", fix="give a video file")
            chosen = _FORMATS[destination.suffix.lower()]
            chosen = chosen if crf is None else replace(chosen, crf=crf)
            with av.open(str(temporary.absolute()), "w", format=chosen.container) as writer:
                return _transcode(source, reader, writer, chosen, upscale, scale, track)
    except FFmpegError as error:
        raise InputError(
            f"cannot upscale video {source} to {destination}",
            why=f"FFmpeg says: {error.strerror or error}",
            fix="try `ffmpeg -i IN -c:a aac FIXED.mkv` first, and .mkv for the result",
        ) from error


def _transcode(
    path: Path,
    reader: Any,
    writer: Any,
    chosen: _Format,
    upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    scale: int,
    track: Track,
) -> VideoResult:
    from av.video.frame import VideoFrame

    video = reader.streams.video[0]
    if video.codec_context is None:
        raise InputError(f"cannot read video {path}", why="FFmpeg does not tell what its pictures are encoded with")
    _check_size(path, video.codec_context.width, video.codec_context.height)
    size = (video.codec_context.width * scale, video.codec_context.height * scale)
    matrix = _matrix(video.codec_context)
    encoder = _add_video(writer, chosen, video, size, matrix)
    copies = {stream.index: _add_copy(path, writer, chosen, stream) for stream in reader.streams.audio}
    describe_alike(reader, writer, {video.index: encoder, **copies})
    ends, damage = Ends(), Damage()
    _start(writer, chosen, size)

    def larger(item: Any) -> Any:
        return _Picture(upscale(item.rgb), item.pts) if isinstance(item, _Picture) else item

    def written() -> Generator[int]:
        count = 0
        with closing(map_ahead(larger, ahead(_read(path, reader, matrix, ends, damage)))) as upscaled:
            for item in upscaled:
                if not isinstance(item, _Picture):
                    item.stream = copies[item.stream.index]
                    writer.mux(item)
                    continue
                frame = VideoFrame.from_ndarray(item.rgb, format="rgb24")
                coded = frame.reformat(
                    format=encoder.pix_fmt, src_colorspace=matrix, dst_colorspace=matrix, dst_color_range=_LIMITED_RANGE
                )
                coded.pts, coded.time_base = item.pts, video.time_base
                writer.mux(encoder.encode(coded))
                count += 1
                yield count
        writer.mux(encoder.encode(None))

    frames = 0
    with closing(written()) as counts:
        for frames in track(counts, _expected_frames(video, reader)):  # noqa: B007
            pass
    if frames == 0:
        none = (
            f"none of its {counted(damage.left_out, 'frame')} can be decoded"
            if damage.left_out
            else "it holds no frames"
        )
        raise InputError(f"cannot read video {path}", why=none, fix="give a video with frames")
    return VideoResult(frames, size[0], size[1], len(copies), ends.missing_s(reader), damage.left_out, damage.mended)


def _add_video(writer: Any, chosen: _Format, video: Any, size: tuple[int, int], matrix: int) -> Any:
    options = {**chosen.options, "crf": str(chosen.crf)}
    encoder = writer.add_stream(chosen.encoder, rate=video.average_rate or 25, options=options)
    encoder.width, encoder.height = size
    # Halved chroma needs even sizes, which an odd scale of an odd size is not.
    encoder.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
    context, source = encoder.codec_context, video.codec_context
    context.time_base = video.time_base
    context.colorspace, context.color_range = matrix, _LIMITED_RANGE
    context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
    if video.sample_aspect_ratio:
        context.sample_aspect_ratio = video.sample_aspect_ratio
    return encoder


def _add_copy(path: Path, writer: Any, chosen: _Format, stream: Any) -> Any:
    try:
        return writer.add_stream_from_template(stream)
    except ValueError as error:
        why = f".{chosen.container} holds no {stream.codec_context.name} sound"
        raise InputError(
            f"cannot copy the sound of {path}", why=why, fix="name a .mkv file, which holds any"
        ) from error


def _start(writer: Any, chosen: _Format, size: tuple[int, int]) -> None:
    """Open the encoder and write the file's header."""
    from av.error import FFmpegError

    try:
        writer.start_encoding()
    except FFmpegError as error:
        raise InputError(
            f"cannot encode video of {size[0]}x{size[1]} with {chosen.encoder}",
            why=f"FFmpeg says: {error.strerror or error}",
            fix="pipe raw frames to another encoder: `odm-deploy upscale - -`",
        ) from error


def _read(path: Path, reader: Any, matrix: int, ends: Ends, damage: Damage) -> Generator[Any]:
    """Pictures of the video stream and packets of the audio streams, in the order of the file."""
    video = reader.streams.video[0]
    times = PacketTimes() if reader.format.name == "avi" else None
    with reading(path):
        for packet in reader.demux(video, *reader.streams.audio):
            ends.note(packet)
            if packet.stream.index != video.index:
                if packet.dts is not None:
                    yield packet
                continue
            if times is not None:
                times.note(packet)
            for frame in damage.decoded(packet, times):
                if times is not None:
                    frame.pts = times.next()
                if not damage.is_shown(frame):
                    continue
                _check(path, frame, video.codec_context)
                rgb = frame.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace=matrix)
                yield _Picture(rgb.to_ndarray(), frame.pts)
    if times is not None:
        # Of a file that was cut off, what is behind the end is told in seconds.
        damage.compare(0 if ends.missing_s(reader) else video.frames)


def _check(path: Path, frame: Any, context: Any) -> None:
    """Refuse what would come out wrong without a word."""
    why, fix = "", "convert it first: ffmpeg -i IN -c:a copy FIXED.mkv"
    _check_size(path, frame.width, frame.height)
    if (frame.width, frame.height) != (context.width, context.height) or frame.rotation:
        why = f"frame at {frame.time} s is {frame.width}x{frame.height}, turned by {frame.rotation} degrees"
    elif frame.interlaced_frame:
        why, fix = "it is interlaced", "deinterlace it first: ffmpeg -i IN -vf bwdif -c:a copy FIXED.mkv"
    elif frame.pts is None:
        why = "its frames have no timestamps"
    elif context.color_trc in _HDR_TRANSFERS:
        why, fix = f"it is HDR ({_HDR_TRANSFERS[context.color_trc]})", "map it to SDR first, with ffmpeg's tonemap"
    if why:
        raise InputError(f"cannot upscale video {path}", why=why, fix=fix)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        why = f"{width}x{height} is more than the limit of {MAX_PIXELS} pixels a frame"
        raise InputError(f"cannot upscale video {path}", why=why, fix="cut it into smaller pieces: ffmpeg's crop")


def _matrix(context: Any) -> int:
    """The luma-chroma matrix of a stream; where it names none (or RGB), what players assume of its size."""
    if context.colorspace not in (0, _UNSPECIFIED):
        return int(context.colorspace)
    return _BT709 if context.height >= _HD_HEIGHT_PX else _SMPTE170M


def _expected_frames(video: Any, reader: Any) -> int:
    if video.frames:
        return int(video.frames)
    seconds = (reader.duration or 0) / 1e6
    return max(1, round(seconds * float(video.average_rate or 25)))
