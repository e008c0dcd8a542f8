"""Videos: every frame at its time, the sound copied and in step, and nothing written where something is wrong."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.upscaling import video as module
from odm_deploy.upscaling.video import is_video, upscale_video
from tests.video_clips import flash_times_s, frame_times_s, tone_times_s, write_clip

av = pytest.importorskip("av", reason="PyAV is not installed")


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_and_sound_stay_in_step(clip, tmp_path, suffix):
    result = tmp_path / f"out{suffix}"
    summary = upscale_video(clip, result, doubled, 2)
    assert (summary.width, summary.height, summary.frames, summary.audio_streams) == (128, 96, 24, 1)
    # Matroska counts milliseconds, and starts later by what an AAC encoder puts in front of the sound.
    times = frame_times_s(result)
    assert np.array(times) - times[0] == pytest.approx(frame_times_s(clip), abs=0.002)
    flashes = flash_times_s(result)
    assert np.diff(flashes) == pytest.approx([1], abs=0.002)
    assert tone_times_s(result) == pytest.approx(flashes, abs=0.02)


def test_the_sound_is_copied_not_encoded_again(clip, tmp_path):
    upscale_video(clip, tmp_path / "out.mp4", doubled, 2)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(clip)


def test_frames_of_an_uneven_rhythm_keep_it(tmp_path):
    write_clip(tmp_path / "in.mp4", seconds=1, uneven=True)
    upscale_video(tmp_path / "in.mp4", tmp_path / "out.mp4", doubled, 2)
    times = frame_times_s(tmp_path / "out.mp4")
    assert len(set(np.round(np.diff(times), 4))) > 1
    assert times == pytest.approx(frame_times_s(tmp_path / "in.mp4"), abs=1e-4)


@pytest.mark.parametrize("scale", [1, 2])
def test_colours_survive(tmp_path, scale):
    source, result = tmp_path / "in.mkv", tmp_path / "out.mkv"
    picture = np.empty((31, 51, 3), np.uint8)
    picture[:] = (200, 60, 30)
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=10)
        # Sides that are odd, and stay so at scale 1: no chroma of half the resolution then.
        video.width, video.height, video.pix_fmt = 51, 31, "yuv444p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv444p", dst_colorspace=5)))
        container.mux(video.encode(None))
    seen: list[np.ndarray] = []

    def larger(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        return pixels.repeat(scale, 0).repeat(scale, 1)

    upscale_video(source, result, larger, scale)
    assert len(seen) == 3
    assert np.abs(seen[0].astype(int) - picture).max() <= 4
    with av.open(str(result)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (51 * scale, 31 * scale)
        found = frame.reformat(format="rgb24", src_colorspace=int(frame.colorspace)).to_ndarray()
    assert np.abs(found.astype(int) - picture[0, 0]).max() <= 6


def test_progress_steps_once_a_frame(clip, tmp_path):
    steps: list[int] = []

    def track(items, total):
        for index, item in enumerate(items):
            steps.append(index)
            yield item
        assert total == 24

    summary = upscale_video(clip, tmp_path / "out.mp4", doubled, 2, track=track)
    assert len(steps) == summary.frames == 24


def test_what_is_no_video_is_named_and_leaves_nothing(clip, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 50)
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        container.add_stream("flac", rate=8000, layout="mono")
        container.start_encoding()
    for name in ("noise.mp4", "half.mp4", "missing.mp4", "sound.mkv"):
        # What cannot be read is said to be so: another container, or other sound, for the result would not help.
        with pytest.raises(InputError, match=f"cannot read video .*{name}"):
            upscale_video(tmp_path / name, out / "out.mp4", doubled, 2)
    assert not out.exists() or not list(out.iterdir())


def write_colours(path: Path, *, frames: int, width: int = 64, height: int = 48, sound: str | None = None) -> None:
    """Frames of one colour each, and a second of silence."""
    with av.open(str(path), "w") as container:
        # Of the encoders that take huge frames, the one that does so in no time.
        encoder, pixels = ("libx264", "yuv420p") if width < 5000 else ("mjpeg", "yuvj420p")
        video = container.add_stream(encoder, rate=10)
        video.width, video.height, video.pix_fmt = width, height, pixels
        audio = None if sound is None else container.add_stream(sound, rate=48000, layout="mono")
        container.start_encoding()
        for index in range(frames):
            frame = av.VideoFrame(width, height, pixels)
            for plane in frame.planes:
                plane.update(bytes([40 + 10 * index]) * plane.buffer_size)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, 48000 if audio else 0, 960):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "flt", "mono")
            block.sample_rate, block.pts = 48000, start
            container.mux(audio.encode(block))
        container.mux([] if audio is None else audio.encode(None))


def test_webm_holds_vp9_and_opus(tmp_path):
    write_colours(tmp_path / "in.mkv", frames=5, sound="libopus")
    summary = upscale_video(tmp_path / "in.mkv", tmp_path / "out.webm", doubled, 2)
    assert (summary.frames, summary.audio_streams) == (5, 1)
    with av.open(str(tmp_path / "out.webm")) as container:
        assert container.streams.video[0].codec_context.name == "vp9"
        assert len(list(container.decode(video=0))) == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_a_scratched_video_the_rest_is_shown_in_order(clip, tmp_path, suffix):
    whole = clip.read_bytes()
    middle = whole.index(b"mdat") + 4 + (len(whole) - whole.index(b"mdat")) // 3
    (tmp_path / "scratched.mp4").write_bytes(whole[:middle] + bytes(600) + whole[middle + 600 :])
    result = upscale_video(tmp_path / "scratched.mp4", tmp_path / f"out{suffix}", doubled, 2)
    times, every = frame_times_s(tmp_path / f"out{suffix}"), frame_times_s(clip)
    assert result.frames == len(times) < len(every)
    assert result.damaged > 0
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {}), ("mpeg4", {}), ("mpeg4", {"bf": "2"}), ("mjpeg", {}), ("ffv1", {}), ("msmpeg4", {})],
)
@pytest.mark.parametrize("header_too", [False, True])
def test_of_a_damaged_avi_every_frame_is_shown_or_counted(tmp_path, codec, options, header_too):
    count, path = 24, tmp_path / "in.avi"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=12, options=options)
        video.width, video.height, video.pix_fmt = 96, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * index, 1), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    whole = upscale_video(path, tmp_path / "out.mkv", doubled, 2)
    assert (whole.frames, whole.damaged, whole.mended, whole.missing_s) == (count, 0, 0, 0)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for start, size in places[7:15:7]:
        # A chunk's header is its name and its length.
        end = start + 8 + size + (8 if header_too else 0)
        data[start + 8 : end] = bytes(end - start - 8)
    path.write_bytes(data)
    result = upscale_video(path, tmp_path / "out.mkv", doubled, 2)
    assert result.frames + result.damaged == count
    assert result.damaged + result.mended > 0


def test_sound_that_a_container_cannot_hold_is_named(clip, tmp_path):
    with pytest.raises(InputError, match=r"clip\.mp4.*webm holds no aac sound.*\.mkv"):
        upscale_video(clip, tmp_path / "out.webm", doubled, 2)
    assert not list(tmp_path.iterdir())


def test_quality_is_the_callers(clip, tmp_path):
    sizes = []
    for crf in (10, 40):
        upscale_video(clip, tmp_path / "out.mp4", doubled, 2, crf=crf)
        sizes.append((tmp_path / "out.mp4").stat().st_size)
    assert sizes[1] < sizes[0]


def test_hostile_videos_cost_one_line_each(tmp_path, monkeypatch):
    # Coding a frame above the real limit takes seconds.
    monkeypatch.setattr(module, "MAX_PIXELS", 200_000)
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_colours(tmp_path / "frameless.mkv", frames=0)
    write_colours(tmp_path / "huge.mkv", frames=1, width=640, height=480)
    # Fits the limit, but the encoder takes no rows as long as twice these.
    write_colours(tmp_path / "large.mkv", frames=1, width=8400, height=16)
    for name, message in (
        ("empty.mp4", "Invalid data"),
        ("frameless.mkv", "End of file|no frames"),
        ("huge.mkv", "more than the limit"),
        ("large.mkv", "cannot encode video of 16800x32"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            upscale_video(tmp_path / name, tmp_path / "out" / "out.mp4", doubled, 2)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").iterdir())


def test_a_video_cut_short_gives_what_is_there_or_an_error(tmp_path):
    whole = tmp_path / "whole.mkv"
    write_clip(whole)
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 10])
    with pytest.raises(InputError, match=r"cut\.mkv"):
        upscale_video(tmp_path / "cut.mkv", tmp_path / "out.mkv", doubled, 2)
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 9 // 10])
    assert 0 < upscale_video(tmp_path / "cut.mkv", tmp_path / "out.mkv", doubled, 2).frames < 24


def test_an_error_of_the_network_ends_the_video(clip, tmp_path):
    def refuse(_: np.ndarray) -> np.ndarray:
        raise InputError("not built for this size")

    with pytest.raises(InputError, match="not built"):
        upscale_video(clip, tmp_path / "out" / "out.mp4", refuse, 2)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_video_leaves_nobody_at_work_on_it(tmp_path):
    """A thread that still decodes a file when it is closed ends the process by a signal of another kind."""
    write_clip(tmp_path / "in.mp4", seconds=3)

    def interrupted(counts, total, stage=""):
        yield next(counts)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_video(tmp_path / "in.mp4", tmp_path / "out.mp4", doubled, 2, track=interrupted)
    assert [thread.name for thread in threading.enumerate() if "pipeline" in thread.name] == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files there")
def test_the_video_that_was_read_is_closed(clip, tmp_path):
    upscale_video(clip, tmp_path / "out.mp4", doubled, 2)
    assert clip.resolve() not in [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]


def test_names_decide_what_is_a_video():
    assert is_video("A.MKV")
    assert not is_video("in.png")
