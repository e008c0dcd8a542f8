"""Every verb as work that may be killed, run out of room, or done twice at once; and what may be there afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolbox import only_named

from torture.commands import Command, odm_deploy, training
from torture.material import SIZE, Material
from torture.results import (
    PRINTED,
    bundle_whole,
    ends_with,
    frames_whole,
    graph_whole,
    images_whole,
    json_whole,
    models_whole,
    nothing,
    poster_whole,
    triton_whole,
    video_whole,
)

_RUN = ("--runtime", "onnxruntime")


@dataclass(frozen=True)
class Job:
    """A command, and what may be where it writes whenever it ends."""

    call: Callable[[Path], Command]
    """From the folder to write in to the command."""
    check: Callable[[Path], str]
    """What is wrong in that folder; empty where everything is whole or absent."""
    weight: int = 1
    """How often it is drawn."""
    prepare: Callable[[Path], object] | None = None
    """Puts there what the command changes."""
    resumes: bool = False
    """Whether its state is kept from one attempt to the next."""
    ends: bool = True
    """Whether it ends by itself."""
    writes: bool = True
    prints: bool = False
    """Whether its result goes to standard output, which may break off where the command then says so."""


def leaving(made: Material, wanted: str) -> tuple[dict[str, Job], list[str]]:
    """The verbs that leave files, or the one that is wanted, and their names as often as they are to be drawn.

    Raises:
        UsageError: no such verb, or it leaves nothing.
    """
    jobs = only_named({name: job for name, job in jobs_of(made).items() if not job.prints}, wanted, "verb")
    return jobs, [name for name in jobs for _ in range(jobs[name].weight)]


def jobs_of(made: Material) -> dict[str, Job]:
    """Every verb, by name."""
    model, bundle = made.model, made.bundle
    images = ("--images", made.images)
    quantize = ("quantize", made.weights, *images, "--bits", "8", "--no-fit")
    engine = ("--builder", "tensorrt_rtx", "--shapes", f"1x3x{SIZE[0]}x{SIZE[1]}")
    return {
        "export": Job(lambda out: odm_deploy("export", model, "-o", out / "b", "--no-engine"), bundle_whole, 3),
        "export with an engine": Job(
            lambda out: odm_deploy("export", model, "-o", out / "b", *engine),
            bundle_whole,
        ),
        "build": Job(
            lambda out: odm_deploy("build", out / "b", *engine),
            bundle_whole,
            prepare=lambda out: shutil.copytree(bundle, out / "b"),
        ),
        "quantize": Job(lambda out: odm_deploy(*quantize, "-o", out / "m.pt"), models_whole, 2),
        "quantize and export": Job(
            lambda out: odm_deploy(*quantize, "-o", out / "m.pt", "--export", out / "b", "--no-engine"),
            lambda out: models_whole(out) or bundle_whole(out),
        ),
        "upscale an image": Job(
            lambda out: odm_deploy("upscale", made.images / "0.png", out / "large.png", "--model", bundle, *_RUN),
            images_whole,
            4,
        ),
        "upscale a large image": Job(
            lambda out: odm_deploy("upscale", made.poster, out / "poster.png", "--model", bundle, *_RUN), poster_whole
        ),
        "upscale a folder": Job(
            lambda out: odm_deploy("upscale", made.images, out / "large", "--model", bundle, *_RUN), images_whole, 6
        ),
        "upscale a video": Job(
            lambda out: odm_deploy("upscale", made.clip, out / "large.mp4", "--model", bundle, *_RUN), video_whole, 6
        ),
        "verify": Job(
            lambda out: odm_deploy(
                *("verify", bundle, "--against", model, *images, *_RUN, "--markdown", out / "report.md")
            ),
            lambda out: ends_with(out / "report.md", "."),
            2,
        ),
        "report": Job(
            lambda out: odm_deploy("report", bundle, *images, *_RUN, "--no-bench", "-o", out / "report.html"),
            lambda out: ends_with(out / "report.html", "</html>"),
            2,
        ),
        "training": Job(
            lambda out: training(made.recipe, "--out", out / "run"),
            lambda out: models_whole(out / "run"),
            3,
            resumes=True,
        ),
        "bench": Job(
            lambda out: odm_deploy("bench", bundle, *_RUN, "--size", "32x24", "--seconds", "0.2"),
            nothing,
            writes=False,
        ),
        "serve": Job(
            lambda out: odm_deploy("serve", "--model", bundle, *_RUN, "--port", "0"), nothing, ends=False, writes=False
        ),
        "build for Triton": Job(
            lambda out: odm_deploy("build", out / "b", *engine, "--triton", out / "served"),
            triton_whole,
            prepare=lambda out: shutil.copytree(bundle, out / "b"),
        ),
        "quantize, fine-tuned": Job(
            lambda out: odm_deploy(*quantize, "--finetune", "0.02", "-o", out / "m.pt"), models_whole, resumes=True
        ),
        "lint --fix": Job(
            lambda out: odm_deploy("lint", bundle / "model.onnx", "--fix", "-o", out / "fixed.onnx"), graph_whole
        ),
        **{name: Job(call, whole, prints=True) for name, (call, whole) in _printing(made).items()},
    }


def _printing(made: Material) -> dict[str, tuple[Callable[[Path], Command], Callable[[Path], str]]]:
    """Verbs whose result is what they print."""
    model, bundle = made.model, made.bundle
    images = ("--images", made.images)
    words: dict[str, tuple[str | Path, ...]] = {
        "verify --json": ("verify", bundle, "--against", model, *images, *_RUN),
        "bench --json": ("bench", bundle, *_RUN, "--size", "32x24", "--seconds", "0.2"),
        "inspect --json": ("inspect", bundle),
        "lint --json": ("lint", bundle),
        "eval --json": ("eval", bundle, "--dataset", made.dataset, *_RUN),
        "sensitivity --json": ("sensitivity", made.weights, *images),
        "doctor --json": ("doctor",),
    }

    def printed(verb: tuple[str | Path, ...]) -> tuple[Callable[[Path], Command], Callable[[Path], str]]:
        return lambda out: odm_deploy(*verb, "--json", stdout=out / PRINTED), json_whole

    frames = ("upscale", "-", "-", "--model", bundle, *_RUN)
    return {
        **{name: printed(verb) for name, verb in words.items()},
        "upscale frames": (
            lambda out: odm_deploy(*frames, stdin=made.frames, stdout=out / PRINTED),
            frames_whole,
        ),
    }
