"""SIGKILL at random instants over every verb that writes: afterwards the old is there, or the new, whole."""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.forked import Call, odm_deploy, run_forked, training
from torture.hostile import Tally
from torture.material import FRAMES, IMAGES, SIZE, Material, scratch_free

KILLS_IN_A_ROW = 4
"""In one folder, before the command is let through."""
_RUN = ("--runtime", "onnxruntime")


@dataclass(frozen=True)
class Job:
    """A command that writes, and what may be where it writes whenever it ends."""

    call: Callable[[Path], Call]
    """From the folder to write in to the command."""
    check: Callable[[Path], str]
    """What is wrong in that folder; empty where everything is whole or absent."""
    weight: int = 1
    resumes: bool = False
    """Whether its state is kept from one attempt to the next."""


def jobs_of(made: Material) -> dict[str, Job]:
    """Every verb that writes."""
    model, bundle = made.model, made.bundle
    images = ("--images", made.images)
    return {
        "export": Job(lambda out: odm_deploy("export", model, "-o", out / "b", "--no-engine"), _bundle_whole),
        "build": Job(
            lambda out: odm_deploy("export", model, "-o", out / "b", "--builder", "tensorrt-rtx"), _bundle_whole
        ),
        "quantize": Job(
            lambda out: odm_deploy("quantize", made.weights, *images, "-o", out / "m.pt", "--bits", "8", "--no-fit"),
            _models_whole,
            2,
        ),
        "upscale a folder": Job(
            lambda out: odm_deploy("upscale", made.images, out / "large", "--model", bundle, *_RUN), _images_whole, 10
        ),
        "upscale a video": Job(
            lambda out: odm_deploy("upscale", made.clip, out / "large.mp4", "--model", bundle, *_RUN), _video_whole, 6
        ),
        "verify": Job(
            lambda out: odm_deploy(
                *("verify", bundle, "--against", model, *images, *_RUN, "--markdown", out / "report.md")
            ),
            lambda out: _ends_with(out / "report.md", "."),
        ),
        "report": Job(
            lambda out: odm_deploy("report", bundle, *images, *_RUN, "-o", out / "report.html"),
            lambda out: _ends_with(out / "report.html", "</html>"),
        ),
        "training": Job(
            lambda out: training(made.recipe, "--out", out / "run"),
            lambda out: _models_whole(out / "run"),
            2,
            resumes=True,
        ),
    }


def kill(made: Material, count: int, seed: int, wanted: str = "", deadline: float = math.inf) -> Tally:
    """Kill `count` commands, of one verb or of all, and look at what they leave; `deadline` is of time.monotonic."""
    tally, rng = Tally(), random.Random(seed)
    jobs = {name: job for name, job in jobs_of(made).items() if wanted in name}
    durations: dict[str, float] = {}
    expected: dict[str, str] = {}
    names = [name for name in jobs for _ in range(jobs[name].weight)]
    while tally.tried.total() < count and time.monotonic() < deadline:
        name = rng.choice(names)
        job = jobs[name]
        with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
            out = Path(scratch)
            if name not in durations:
                whole = run_forked(job.call(out), folder=out)
                if problem := whole.fault or (whole.code and whole.said) or job.check(out):
                    raise AssertionError(f"{name} does not run undisturbed: {problem}")
                durations[name], expected[name] = whole.seconds, _result_of(out)
            if rng.random() < 0.5 and not job.resumes:
                # What was there before is to survive; the one file is replaced as a whole.
                run_forked(job.call(out), folder=out)
            for _ in range(KILLS_IN_A_ROW):
                # Most instants lie within the run; some behind its end.
                outcome = run_forked(job.call(out), folder=out, kill_after_s=rng.random() * durations[name])
                tally.tried[name] += outcome.killed
                problem = outcome.fault or job.check(out)
                if problem:
                    tally.failed.append(f"{name}, seed {seed}: {problem}")
            last = run_forked(job.call(out), folder=out)
            left = scratch_free(out)
            if last.code or left or _result_of(out) != expected[name]:
                what = last.said if last.code else f"left {left}" if left else "another result than undisturbed"
                tally.failed.append(f"{name}, seed {seed}, the run afterwards: {what}")
    return tally


def _result_of(out: Path) -> str:
    """What a run of training ends with, to compare: the same bits, killed or not. Others are judged by their checks."""
    import hashlib

    path = out / "run" / "model.pt"
    if not path.is_file():
        return ""
    with zipfile.ZipFile(path) as archive:
        contents = b"".join(archive.read(name) for name in sorted(archive.namelist()) if "/data/" in name)
    return hashlib.sha256(contents).hexdigest()


def _bundle_whole(out: Path) -> str:
    import hashlib

    folder = out / "b"
    if not folder.exists():
        return ""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        json.loads((folder / "golden.json").read_text())
        found = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        return f"a bundle that is none: {error}"
    return "" if found == manifest["onnx"]["sha256"] else "a bundle of two exports"


def _models_whole(out: Path) -> str:
    for path in out.glob("*.pt"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            return f"{path.name} is half written: {error}"
        if broken:
            return f"{path.name} is half written: {broken}"
    return ""


def _images_whole(out: Path) -> str:
    from PIL import Image

    paths = list((out / "large").glob("[!.]*")) if (out / "large").exists() else []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
                size = image.size
        except OSError as error:
            return f"{path.name} is half written: {error}"
        if size != (2 * SIZE[1], 2 * SIZE[0]):
            return f"{path.name} is {size}"
    return "" if len(paths) <= IMAGES else f"{len(paths)} images of {IMAGES}"


def _video_whole(out: Path) -> str:
    import av

    path = out / "large.mp4"
    if not path.exists():
        return ""
    try:
        with av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
    except OSError as error:
        return f"a video that is none: {error}"
    return "" if frames == FRAMES else f"{frames} frames of {FRAMES}"


def _ends_with(path: Path, end: str) -> str:
    if not path.exists():
        return ""
    return "" if path.read_text(encoding="utf-8").rstrip().endswith(end) else f"{path.name} is half written"
