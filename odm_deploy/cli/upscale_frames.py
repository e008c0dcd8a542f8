"""What `odm-deploy upscale` does with moving pictures: video files, and raw frames through pipes."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from odm_deploy.errors import UsageError
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, progress, say

if TYPE_CHECKING:
    from odm_deploy.engine import Engine

PIPE = "-"
"""Stands for stdin and stdout."""


def check_pipe(source: str, destination: Path, size: tuple[int, int] | None, as_json: bool) -> None:
    """Check that both ends are pipes or neither is, and that there is a `size` for pipes only.

    Raises:
        UsageError: one end only is a pipe, --size is given without need, or --json wants stdout.
    """
    ends = (source, str(destination))
    if PIPE not in ends:
        if size is not None:
            fix = "leave it out, or use - for IN and OUT"
            raise UsageError("--size is of raw video through pipes", why="files know their size", fix=fix)
        return
    if ends != (PIPE, PIPE):
        why, fix = "one end is a pipe, the other is not", "use - for both; ffmpeg reads and writes the files"
        raise UsageError(f"cannot upscale {source} to {destination}", why=why, fix=fix)
    if as_json:
        raise UsageError("no --json with pipes", why="stdout carries the frames", fix="leave --json out")


def upscale_pipe(engine: Engine, size: tuple[int, int] | None, pixel_format: str) -> None:
    """Frames from stdin, upscaled, to stdout: raw ones of `size`; without one, y4m.

    Raises:
        UsageError: raw video without a size.
        InputError, OdmError: as `upscale_stream`.
    """
    from odm_deploy.upscaling.pipes import upscale_stream
    from odm_deploy.upscaling.raw_video import RawVideo
    from odm_deploy.upscaling.y4m import MAGIC, read_header

    stdin = sys.stdin.buffer
    if size is not None:
        frames = RawVideo(*size, pixel_format)
    elif (begun := stdin.read(len(MAGIC))) == MAGIC:
        frames = read_header(stdin, begun)
    else:
        why = "nothing came" if not begun else "what comes is no y4m, and raw frames have no header that would tell"
        fix = "let ffmpeg write -f yuv4mpegpipe -pix_fmt yuv444p, or add --size 1280x720"
        raise UsageError("the size of the frames is not known", why=why, fix=fix)
    start = time.perf_counter()
    count = upscale_stream(stdin, sys.stdout.buffer, partial(engine.upscale, bits=8), engine.scale, frames)
    say(f"wrote {counted(count, 'frame')} of {frames.enlarged(engine.scale)}, {_speed(count, start, engine)}")


def upscale_video_file(source: Path, destination: Path, engine: Engine, crf: int | None, as_json: bool) -> int:
    """One video file into another, of the given quality (see `upscale_video`); returns 1 where it is not whole.

    Raises:
        KeyboardInterrupt: after Ctrl-C; with what became of the result.
    """
    from odm_deploy.upscaling.video import upscale_video

    start = time.perf_counter()
    larger = partial(engine.upscale, bits=8)
    try:
        with progress("frames", "fps") as track:
            result = upscale_video(source, destination, larger, engine.scale, crf=crf, track=track)
    except KeyboardInterrupt:
        became = "stays as it was" if destination.exists() else "is not written"
        raise KeyboardInterrupt(f"{destination} {became}; the same command begins anew") from None
    if as_json:
        seconds = time.perf_counter() - start
        emit_json(
            {
                "input": str(source),
                "output": str(destination),
                "size": [result.width, result.height],
                "frames": result.frames,
                "audio_streams": result.audio_streams,
                "missing_s": result.missing_s,
                "damaged_frames": result.damaged,
                "mended_frames": result.mended,
                "runtime": engine.describe(),
                "seconds": seconds,
                "frames_per_s": result.frames / seconds,
            }
        )
    else:
        speed = _speed(result.frames, start, engine)
        frames = counted(result.frames, "frame")
        say(f"wrote {destination}: {frames} of {result.width}x{result.height}, {speed}")
    if result.missing_s:
        why = f"{result.missing_s:.1f} s of what it claims are not there"
        say(f"{source} is cut off: {why}; {destination} holds {counted(result.frames, 'frame')}")
    if result.damaged:
        why = f"{counted(result.damaged, 'frame')} could not be decoded"
        say(f"{source} is damaged: {why}; {destination} shows the one before for as long")
    if result.mended:
        why = f"{counted(result.mended, 'frame')} could be decoded in part only"
        shown = "shows them as FFmpeg filled them, and those that refer to them"
        say(f"{source} is damaged: {why}; {destination} {shown}")
    return 1 if result.missing_s or result.damaged or result.mended else 0


def _speed(frames: int, start: float, engine: Engine) -> str:
    seconds = time.perf_counter() - start
    return f"{seconds:.2f} s ({frames / seconds:.1f} fps) on {engine.describe()['runtime']}"
