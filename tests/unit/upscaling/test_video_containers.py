"""What a video says beside its frames survives; AVI frames get times; a file that was cut off is told."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")
import av

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
