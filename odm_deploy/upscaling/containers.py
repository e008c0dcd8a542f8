"""What a video file says beside its frames: titles, languages, chapters, how long it is, and when its packets come."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from odm_deploy.errors import InputError

# Facts about the file that was read; the one that is written has its own.
_OF_THE_FILE = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "creation_time"}
_OF_A_STREAM = ("language", "title", "handler_name")
_TOLERANCE_S, _TOLERANCE = 0.5, 0.02
"""Headers round, and the last sounds and pictures of a whole file end at different times."""


_CONTAINERS = (
    *(
        "mov",
        "matroska",
        "avi",
        "mpegts",
        "mpeg",
        "mpegvideo",
        "asf",
        "flv",
        "live_flv",
        "mxf",
        "ogg",
        "nut",
        "ivf",
        "obu",
    ),
    *("h264", "hevc", "m4v", "av1", "dv", "gif", "apng", "yuv4mpegpipe", "rm", "wtv"),
)
"""FFmpeg's names of those that are read. It tells them by content, whatever a file's name, and knows playlists, too:
whoever sends one could have pictures of other files on this machine in the result."""


_A_FRAME_A_PACKET = (
    *("h264", "hevc", "flv1"),
    *("mjpeg", "ffv1", "prores", "dnxhd", "huffyuv", "ffvhuff", "utvideo", "png"),
)
"""Codecs whose every packet becomes a frame of its time, if it is whole; others have packets that show nothing."""


_FEWEST_GAPS = 8
_RHYTHM, _ROUNDED = 0.8, 0.2
"""Share of the frames of a video that come one step after the one before, and what of a step that may be off."""
_PAUSE = 250
"""From so many steps on a gap is a recording's pause, or a clock set anew."""

_SAYS_NOTHING_NEW_BYTES = 16
"""Packets of AVI files up to this size may say that nothing changes, or that the one before held two frames."""


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Raise InputError where FFmpeg cannot read a video: nothing is wrong with the one that is written then."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise InputError(
            f"cannot read video {path}",
            why=f"FFmpeg says: {error.strerror or error}",
            fix="give a whole video file; `ffmpeg -i IN FIXED.mkv` saves what can be read of a damaged one",
        ) from error


@contextmanager
def opened_to_read(path: Path) -> Generator[Any]:
    """Yield a PyAV container of a file; what of its texts is not UTF-8 is replaced, and no reason to refuse a film.

    PyAV does so by itself from 19 on, where it no longer takes a word about it.

    Raises:
        InputError: it is broken, or of a kind that is not read, such as a list that names other files or addresses.
    """
    import av
    from av.error import ArgumentError

    told: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    told["container_options"] = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
    with reading(path):
        try:
            # Of a relative name, FFmpeg takes what comes before a colon for a protocol.
            container = av.open(str(path.absolute()), **told)
        except ArgumentError:
            why = "it is no container of its own pictures: a list, perhaps, of other files"
            raise InputError(f"cannot read video {path}", why=why, fix="give the video itself") from None
    try:
        yield container
    except KeyboardInterrupt:
        # Whoever presses Ctrl-C twice does not wait for threads: one that still decodes keeps it open.
        raise
    except BaseException:
        container.close()
        raise
    container.close()


def describe_alike(reader: Any, writer: Any, streams: Mapping[int, Any]) -> None:
    """Give a PyAV container that is to be written the title, chapters, languages and defaults of one that is read.

    Args:
        reader: the container that is read.
        writer: the container to write, before its header is.
        streams: the streams of `writer`, by the index of theirs in `reader`.
    """
    writer.metadata.update({key: value for key, value in reader.metadata.items() if key.lower() not in _OF_THE_FILE})
    chapters = reader.chapters()
    if chapters:
        writer.set_chapters(chapters)
    for index, stream in streams.items():
        source = reader.streams[index]
        for key in _OF_A_STREAM:
            if key in source.metadata:
                stream.metadata[key] = source.metadata[key]
        stream.disposition = source.disposition


class Ends:
    """Tells a file that was cut off from a whole one, by where its packets end."""

    def __init__(self) -> None:
        self._last_s = 0.0

    def note(self, packet: Any) -> None:
        """Take in a packet of any stream."""
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            self._last_s = max(self._last_s, float((time + (packet.duration or 0)) * packet.time_base))

    def missing_s(self, reader: Any) -> float:
        """Seconds between the end of what was read and the end that the file claims; 0 where that is nothing."""
        if reader.duration is None:
            return 0.0
        claimed_s = (reader.duration + max(reader.start_time or 0, 0)) / 1e6
        missing_s = claimed_s - self._last_s
        return missing_s if missing_s > max(_TOLERANCE_S, _TOLERANCE * claimed_s) else 0.0


def missing_in(times: Sequence[int]) -> int:
    """How many frames are missing between those of these rising times; 0 where they have no rhythm to tell it by."""
    gaps = [after - before for before, after in itertools.pairwise(times)]
    if len(gaps) < _FEWEST_GAPS or (usual := statistics.median(gaps)) <= 0:
        return 0
    # Containers round times to milliseconds, say.
    steps = [gap / usual for gap in gaps]
    if sum(abs(step - 1) < _ROUNDED for step in steps) < _RHYTHM * len(steps):
        return 0
    return sum(round(step) - 1 for step in steps if 1 < step < _PAUSE)


class Damage:
    """Counts frames that cannot be decoded, or only in part: of a scratched disc, players show the rest, too."""

    def __init__(self) -> None:
        self.mended = 0
        """Frames that are shown although bits of them were wrong: the decoder filled what it could not read."""
        self._refused = 0
        self._too_late = 0
        self._first: int | None = None
        self._shown: int | None = None
        self._refused_times: set[int] = set()
        self._corrupt_times: set[int] = set()
        self._shown_times: list[int] = []
        self._awaited: set[int] = set()
        self._packets = 0
        self._pictures = 0
        """Of the packets, those that are large enough to be a picture."""
        self._came = 0
        self._lost = 0

    def compare(self, stated: int) -> None:
        """Count what an AVI file lost without a word: of its `stated` frames some packets may not have been found, and
        of those that were, some may not have become frames.
        """
        self._lost = max(stated - self._packets, 0) + max(self._pictures - self._came - self._refused, 0)

    @property
    def left_out(self) -> int:
        """Frames that are not shown, with those that decoders drop without a word.

        Not those before the first one that came: a file cut between frames that refer to each other begins so.
        """
        silent = sum(self._first is None or time > self._first for time in self._awaited)
        known = self._refused + self._too_late + self._lost + silent
        # Packets that containers do not find leave a gap alone, which says nothing by itself: rhythms may vary.
        return max(known, missing_in(self._shown_times)) if known or self.mended else 0

    def is_shown(self, frame: Any) -> bool:
        """Whether a frame is to be shown: not where a later one was, because behind damage decoders lose the order."""
        self._awaited.discard(frame.pts)
        partly = frame.is_corrupt or (self._first is not None and frame.pts in self._corrupt_times)
        if frame.pts in self._refused_times:
            # A part of it was refused; the rest became a frame all the same.
            self._refused_times.remove(frame.pts)
            self._refused -= 1
            partly = True
        damaged = partly or self._refused or self._too_late or self.mended
        if damaged and None not in (self._shown, frame.pts) and frame.pts <= self._shown:
            self._too_late += 1
            return False
        self.mended += partly
        self._shown = frame.pts
        if self._first is None:
            self._first = frame.pts
        if frame.pts is not None:
            self._shown_times.append(frame.pts)
        return True

    def decoded(self, packet: Any, times: PacketTimes | None) -> list[Any]:
        """The frames that come of a packet of video; none of one that is damaged, whose time is then nobody's."""
        from av.error import InvalidDataError

        codec = packet.stream.codec_context.name
        if packet.size or packet.dts is not None:
            # Not the one that asks the decoder for the rest.
            self._packets += 1
            self._pictures += packet.size > _SAYS_NOTHING_NEW_BYTES
        if times is None and codec in _A_FRAME_A_PACKET and packet.size and not packet.is_discard:
            self._awaited.update(() if packet.pts is None else (packet.pts,))
        if packet.is_corrupt and packet.pts is not None:
            # What the container found wrong, the decoder may take without a word.
            self._corrupt_times.add(packet.pts)
        try:
            frames = packet.decode()
            self._came += len(frames)
            return frames
        except InvalidDataError:
            self._refused += 1
            if times is not None:
                times.forget()
            elif packet.pts is not None:
                self._awaited.discard(packet.pts)
                self._refused_times.add(packet.pts)
            return []


class PacketTimes:
    """Times of the frames of AVI files, which have none: the k-th frame to be shown has the place of the k-th packet.

    FFmpeg's guesses do not rise where frames refer to later ones (H.264 with B-frames).
    """

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def note(self, packet: Any) -> None:
        """Take in a packet before its frames are decoded."""
        if packet.size and packet.dts is not None:
            self._waiting.append(packet.dts)

    def forget(self) -> None:
        """The packet that was noted last gives no frame."""
        if self._waiting:
            self._waiting.pop()

    def next(self) -> Any:
        """Time of the next decoded frame, int in the stream's time base; None where no packet is left."""
        return self._waiting.popleft() if self._waiting else None
