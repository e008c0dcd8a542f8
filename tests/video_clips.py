"""A clip to check sound and picture against each other: once a second a white frame, and a tone that starts with it."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np

FLASH, DARK = 235, 30
TONE_HZ, TONE_S = 1000, 0.1
SAMPLES_PER_S = 8000
_AUDIO_BLOCK = 1024


def write_clip(
    path: Path, *, seconds: int = 2, fps: int = 12, width: int = 64, height: int = 48, uneven: bool = False
) -> None:
    """Write the clip: H.264 and AAC. With `uneven`, every frame but the flashes comes a quarter of a frame late."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = Fraction(1, 4 * fps)
        audio = container.add_stream("aac", rate=SAMPLES_PER_S, layout="mono")
        for index in range(seconds * fps):
            flashes = index % fps == 0
            frame = av.VideoFrame.from_ndarray(_picture(height, width, index, flashes), format="rgb24")
            frame.pts = 4 * index + (1 if uneven and not flashes else 0)
            frame.time_base = Fraction(1, 4 * fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        times = np.arange(seconds * SAMPLES_PER_S) / SAMPLES_PER_S
        samples = (np.sin(2 * np.pi * TONE_HZ * times) * (times % 1 < TONE_S)).astype(np.float32)
        for start in range(0, len(samples), _AUDIO_BLOCK):
            block = av.AudioFrame.from_ndarray(samples[None, start : start + _AUDIO_BLOCK], "fltp", "mono")
            block.sample_rate, block.pts = SAMPLES_PER_S, start
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def _picture(height: int, width: int, index: int, flashes: bool) -> np.ndarray:
    if flashes:
        return np.full((height, width, 3), FLASH, np.uint8)
    ramp = np.linspace(0, DARK, width, dtype=np.uint8)
    return np.repeat(np.repeat(np.roll(ramp, index)[None, :, None], height, 0), 3, 2)


def frame_times_s(path: Path) -> list[float]:
    """When each frame is shown."""
    import av

    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def flash_times_s(path: Path) -> list[float]:
    """When the white frames are shown: those that differ from the median frame, whatever a network makes of white."""
    import av

    with av.open(str(path)) as container:
        shown = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    differences = np.abs(np.array([level for _, level in shown]) - np.median([level for _, level in shown]))
    return [time for (time, _), difference in zip(shown, differences, strict=True) if difference > max(differences) / 2]


def tone_times_s(path: Path) -> list[float]:
    """When the tones start."""
    import av

    with av.open(str(path)) as container:
        blocks = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    times = np.concatenate([start + np.arange(len(block)) / SAMPLES_PER_S for start, block in blocks])
    loud = times[np.abs(np.concatenate([block for _, block in blocks])) > 0.3]
    return [
        float(loud[0]),
        *(float(after) for before, after in itertools.pairwise(loud) if after - before > 0.5),
    ]
