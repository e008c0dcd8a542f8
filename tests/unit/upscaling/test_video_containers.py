"""What a video says beside its frames survives; AVI frames get times; a file that was cut off is told."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")
import av

from odm_deploy.errors import InputError
from odm_deploy.upscaling.containers import missing_in, opened_to_read
from odm_deploy.upscaling.video import upscale_video
from tests.video_clips import flash_times_s, frame_times_s, write_clip


def twice(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, 0).repeat(2, 1)


def retold(source: Path, target: Path) -> None:
    """A copy of a clip with a title, two chapters and a language."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        writer.metadata["title"] = "A film"
        chapter = {"time_base": Fraction(1, 1000), "metadata": {"title": "part"}}
        writer.set_chapters([{"id": k, "start": 500 * k, "end": 500 * (k + 1), **chapter} for k in (1, 2)])
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        for stream in reader.streams.audio:
            streams[stream.index].metadata["language"] = "jpn"
        for packet in reader.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                writer.mux(packet)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_titles_languages_and_chapters_stay(tmp_path, suffix):
    write_clip(tmp_path / "plain.mp4")
    retold(tmp_path / "plain.mp4", tmp_path / f"in{suffix}")
    upscale_video(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", twice, 2)
    with av.open(str(tmp_path / f"in{suffix}")) as given, av.open(str(tmp_path / f"out{suffix}")) as made:
        assert made.metadata["title"] == "A film"
        assert [chapter["metadata"]["title"] for chapter in made.chapters()] == ["part", "part"]
        spans = [
            [(each["start"] * each["time_base"], each["end"] * each["time_base"]) for each in file.chapters()]
            for file in (given, made)
        ]
        assert spans[0] == spans[1]
        assert [stream.metadata["language"] for stream in made.streams.audio] == ["jpn"]


def test_metadata_in_no_utf8_are_no_obstacle(tmp_path):
    write_clip(tmp_path / "plain.mp4")
    retold(tmp_path / "plain.mp4", tmp_path / "in.mkv")
    content = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "in.mkv").write_bytes(content.replace(b"A film", b"A \xff\xfe\x80m"))
    assert upscale_video(tmp_path / "in.mkv", tmp_path / "out.mkv", twice, 2).frames == 24


def test_frames_of_an_avi_rise_though_they_refer_to_later_ones(tmp_path):
    write_clip(tmp_path / "plain.mp4", seconds=3)
    with av.open(str(tmp_path / "plain.mp4")) as reader, av.open(str(tmp_path / "in.avi"), "w") as writer:
        stream = writer.add_stream("libx264", rate=12, options={"bf": "3", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, frame in enumerate(reader.decode(video=0)):
            frame.pts, frame.time_base = index, Fraction(1, 12)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    assert upscale_video(tmp_path / "in.avi", tmp_path / "out.mkv", twice, 2).frames == 36
    times = frame_times_s(tmp_path / "out.mkv")
    assert np.diff(times) == pytest.approx(1 / 12, abs=2e-3)
    flashes = np.array(flash_times_s(tmp_path / "out.mkv"))
    assert flashes - flashes[0] == pytest.approx([0, 1, 2], abs=0.01)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_whole_file_misses_nothing(tmp_path, suffix):
    write_clip(tmp_path / f"in{suffix}", seconds=3)
    assert upscale_video(tmp_path / f"in{suffix}", tmp_path / "out.mkv", twice, 2).missing_s == 0.0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_file_that_was_cut_off_says_how_much_is_missing(tmp_path, share):
    write_clip(tmp_path / "in.mkv", seconds=5)
    content = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: int(len(content) * share)])
    result = upscale_video(tmp_path / "cut.mkv", tmp_path / "out.mkv", twice, 2)
    assert 0 < result.frames < 60
    assert result.missing_s == pytest.approx(5 - result.frames / 12, abs=0.4)


def damage(path: Path, result: Path, packets: set[int]) -> None:
    """The same file with these packets of its video, counted from 0, turned into noise."""
    with av.open(str(path)) as reader, av.open(str(result), "w") as writer:
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        count = 0
        for packet in reader.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                if count in packets:
                    noise = av.Packet(b"\xff" * packet.size)
                    noise.pts, noise.dts, noise.duration = packet.pts, packet.dts, packet.duration
                    noise.time_base, noise.stream = packet.time_base, packet.stream
                    packet = noise
                count += 1
            packet.stream = streams[packet.stream.index]
            writer.mux(packet)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
def test_a_damaged_frame_costs_itself_and_is_counted(tmp_path, suffix):
    recoded(tmp_path, suffix, "mpeg4")
    damage(tmp_path / f"plain{suffix}", tmp_path / f"damaged{suffix}", {7, 11})
    whole = upscale_video(tmp_path / f"plain{suffix}", tmp_path / "whole.mkv", twice, 2)
    result = upscale_video(tmp_path / f"damaged{suffix}", tmp_path / "out.mkv", twice, 2)
    assert (result.frames, result.damaged, whole.damaged) == (whole.frames - 2, 2, 0)
    times = frame_times_s(tmp_path / "whole.mkv")
    found = frame_times_s(tmp_path / "out.mkv")
    assert found == sorted(found)
    assert set(found) < set(times)
    if suffix != ".mp4":
        # There frames are not stored in the order they are shown in.
        assert set(times) - set(found) == {times[7], times[11]}


def flipped(path: Path, result: Path, packets: set[int]) -> None:
    """The same video with a byte changed in the middle of these packets, counted from 0."""
    with av.open(str(path)) as reader, av.open(str(result), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for count, packet in enumerate(each for each in reader.demux(video=0) if each.size):
            if count in packets:
                content = bytearray(bytes(packet))
                content[len(content) // 2] ^= 0xFF
                changed = av.Packet(bytes(content))
                changed.pts, changed.dts, changed.duration = packet.pts, packet.dts, packet.duration
                changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
                packet = changed
            packet.stream = stream
            writer.mux(packet)


def noisy(path: Path, codec: str) -> None:
    """A clip whose frames are hard to predict, so that every packet holds more than headers."""
    draws = np.random.default_rng(0)
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream(codec, rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(24):
            pixels = draws.integers(0, 256, (64, 64, 3), np.uint8)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        writer.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_frames_that_can_be_decoded_in_part_are_shown_and_counted(tmp_path, suffix):
    noisy(tmp_path / f"plain{suffix}", "libx264")
    whole = upscale_video(tmp_path / f"plain{suffix}", tmp_path / "whole.mkv", twice, 2)
    assert (whole.frames, whole.damaged, whole.mended) == (24, 0, 0)
    flipped(tmp_path / f"plain{suffix}", tmp_path / f"in{suffix}", {6, 13, 20})
    result = upscale_video(tmp_path / f"in{suffix}", tmp_path / "out.mkv", twice, 2)
    assert result.mended > 0
    assert result.mended + result.damaged == 3
    assert result.frames == 24 - result.damaged


@pytest.mark.parametrize("how", ["cut out", "noise"])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".ts", "libx264"), (".ts", "mpeg2video"), (".mkv", "mpeg4"), (".mkv", "mpeg2video")]
)
def test_frames_that_a_container_does_not_find_are_counted_where_it_is_known_to_be_damaged(
    tmp_path, suffix, codec, how
):
    plain, damaged = tmp_path / f"plain{suffix}", tmp_path / f"damaged{suffix}"
    noisy(plain, codec)
    content = bytearray(plain.read_bytes())
    at, many = len(content) // 3, len(content) // 6
    content[at : at + many] = random.Random(0).randbytes(many if how == "noise" else 0)
    damaged.write_bytes(content)
    whole = upscale_video(plain, tmp_path / "whole.mkv", twice, 2)
    result = upscale_video(damaged, tmp_path / "out.mkv", twice, 2)
    assert (whole.frames, whole.damaged, whole.mended) == (24, 0, 0)
    assert (result.frames + result.damaged, result.damaged > 0) == (24, True)


def test_frames_are_missed_by_the_rhythm_of_the_others():
    every = list(range(0, 2000, 40))
    assert missing_in(every) == 0
    assert missing_in([time for time in every if time not in (400, 440, 1000)]) == 3
    # Milliseconds of 29.97 frames a second, a pause and a clock set anew.
    rounded = [round(1000 * 1001 * count / 30000) for count in range(60)]
    assert missing_in(rounded) == 0
    assert missing_in(rounded[:20] + rounded[21:]) == 1
    assert missing_in([*every, *(time + 3_600_000 for time in every)]) == 0
    # Frames of changing times, and few of them, have none.
    assert missing_in([count * count for count in range(50)]) == 0
    assert missing_in([0, 40, 80, 400]) == 0
    assert missing_in([]) == 0


def test_frames_that_a_decoder_drops_without_a_word_are_counted(tmp_path):
    try:
        noisy(tmp_path / "plain.mkv", "libx265")
    except (ValueError, av.error.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not encode H.265: {error}")
    with av.open(str(tmp_path / "plain.mkv")) as reader:
        sizes = [packet.size for packet in reader.demux(video=0)]
    with av.open(str(tmp_path / "plain.mkv")) as reader, av.open(str(tmp_path / "in.mkv"), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for count, packet in enumerate(each for each in reader.demux(video=0) if each.size):
            if count in (6, 13):
                # The header of the slice: FFmpeg 8 then gives neither an error nor a frame.
                changed = av.Packet(bytes(packet)[:6] + bytes(sizes[count] - 6))
                changed.pts, changed.dts, changed.duration = packet.pts, packet.dts, packet.duration
                changed.time_base = packet.time_base
                packet = changed
            packet.stream = stream
            writer.mux(packet)
    whole = upscale_video(tmp_path / "plain.mkv", tmp_path / "whole.mkv", twice, 2)
    result = upscale_video(tmp_path / "in.mkv", tmp_path / "out.mkv", twice, 2)
    assert (whole.frames, whole.damaged) == (24, 0)
    assert result.frames < 24
    assert result.damaged == 24 - result.frames


def test_a_video_of_noise_is_refused(tmp_path):
    write_clip(tmp_path / "in.mkv")
    damage(tmp_path / "in.mkv", tmp_path / "noise.mkv", set(range(24)))
    with pytest.raises(InputError, match=r"noise\.mkv: none of its \d+ frames can be decoded"):
        upscale_video(tmp_path / "noise.mkv", tmp_path / "out.mkv", twice, 2)
    assert not (tmp_path / "out.mkv").exists()


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    write_clip(tmp_path / "part:1.mp4")
    monkeypatch.chdir(tmp_path)
    assert upscale_video(Path("part:1.mp4"), Path("large:1.mp4"), twice, 2).frames == 24


LISTS = {
    "concat": "ffconcat version 1.0\nfile plain.ts\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nplain.ts\n#EXT-X-ENDLIST\n",
}
"""What FFmpeg takes for a video, whose pictures are another file's."""


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_video(tmp_path, kind, suffix):
    recoded(tmp_path, ".ts", "libx264")
    (tmp_path / f"list{suffix}").write_text(LISTS[kind])
    with pytest.raises(InputError, match=r"a list, perhaps, of other files|Invalid data"):
        upscale_video(tmp_path / f"list{suffix}", tmp_path / "out.mp4", twice, 2)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((suffix, "libx264") for suffix in (".mp4", ".mov", ".mkv", ".avi", ".ts", ".flv", ".h264", ".m4v", ".3gp")),
        *(
            (".webm", "libvpx-vp9"),
            (".ivf", "libvpx-vp9"),
            (".mpg", "mpeg2video"),
            (".wmv", "msmpeg4"),
            (".gif", "gif"),
        ),
        *((".ogv", "libvpx"), (".nut", "ffv1"), (".apng", "apng")),
    ],
)
def test_every_container_of_its_own_pictures_is_read(tmp_path, suffix, codec):
    recoded(tmp_path, suffix, codec)
    with opened_to_read(tmp_path / f"plain{suffix}") as reader:
        assert next(reader.decode(video=0)).width == 64


def recoded(folder: Path, suffix: str, codec: str) -> None:
    """`plain.mp4` and the same in another container."""
    write_clip(folder / "plain.mp4")
    try:
        target = av.open(str(folder / f"plain{suffix}"), "w") if suffix != ".mp4" else None
        if target is None:
            return
        with av.open(str(folder / "plain.mp4")) as reader, target as writer:
            stream = writer.add_stream(codec, rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = {"gif": "rgb8", "apng": "rgb24"}.get(codec, "yuv420p")
            for index, frame in enumerate(reader.decode(video=0)):
                frame.pts, frame.time_base = index, Fraction(1, 25)
                writer.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            writer.mux(stream.encode(None))
    except (ValueError, av.error.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not write {suffix} with {codec}: {error}")
