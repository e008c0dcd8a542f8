"""Every verb as work that may be killed, run out of room, or done twice at once; and what may be there afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image

from torture.commands import Command, odm_deploy, training
from torture.material import FRAMES, IMAGES, SIZE, Material

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


def jobs_of(made: Material) -> dict[str, Job]:
    """Every verb, by name."""
    model, bundle = made.model, made.bundle
    images = ("--images", made.images)
    quantize = ("quantize", made.weights, *images, "--bits", "8", "--no-fit")
    shapes = ("--shapes", f"1x3x{SIZE[0]}x{SIZE[1]}")
    return {
        "export": Job(lambda out: odm_deploy("export", model, "-o", out / "b", "--no-engine"), _bundle_whole, 3),
        "export with an engine": Job(
            lambda out: odm_deploy("export", model, "-o", out / "b", "--builder", "tensorrt_rtx", *shapes),
            _bundle_whole,
        ),
        "build": Job(
            lambda out: odm_deploy("build", out / "b", "--builder", "tensorrt_rtx", *shapes),
            _bundle_whole,
            prepare=lambda out: shutil.copytree(bundle, out / "b"),
        ),
        "quantize": Job(lambda out: odm_deploy(*quantize, "-o", out / "m.pt"), _models_whole, 2),
        "quantize and export": Job(
            lambda out: odm_deploy(*quantize, "-o", out / "m.pt", "--export", out / "b", "--no-engine"),
            lambda out: _models_whole(out) or _bundle_whole(out),
        ),
        "upscale an image": Job(
            lambda out: odm_deploy("upscale", made.images / "0.png", out / "large.png", "--model", bundle, *_RUN),
            _images_whole,
            4,
        ),
        "upscale a folder": Job(
            lambda out: odm_deploy("upscale", made.images, out / "large", "--model", bundle, *_RUN), _images_whole, 6
        ),
        "upscale a video": Job(
            lambda out: odm_deploy("upscale", made.clip, out / "large.mp4", "--model", bundle, *_RUN), _video_whole, 6
        ),
        "verify": Job(
            lambda out: odm_deploy(
                *("verify", bundle, "--against", model, *images, *_RUN, "--markdown", out / "report.md")
            ),
            lambda out: _ends_with(out / "report.md", "."),
            2,
        ),
        "report": Job(
            lambda out: odm_deploy("report", bundle, *images, *_RUN, "--no-bench", "-o", out / "report.html"),
            lambda out: _ends_with(out / "report.html", "</html>"),
            2,
        ),
        "training": Job(
            lambda out: training(made.recipe, "--out", out / "run"),
            lambda out: _models_whole(out / "run"),
            3,
            resumes=True,
        ),
        "bench": Job(
            lambda out: odm_deploy("bench", bundle, *_RUN, "--size", "32x24", "--seconds", "0.2"),
            _nothing,
            writes=False,
        ),
        "serve": Job(
            lambda out: odm_deploy("serve", "--model", bundle, *_RUN, "--port", "0"), _nothing, ends=False, writes=False
        ),
    }


def result_of(out: Path) -> str:
    """What a run of training ends with, to compare: the same bits, killed or not. Others are judged by their checks."""
    path = out / "run" / "model.pt"
    if not path.is_file():
        return ""
    with zipfile.ZipFile(path) as archive:
        contents = b"".join(archive.read(name) for name in sorted(archive.namelist()) if "/data/" in name)
    return hashlib.sha256(contents).hexdigest()


def names_in(out: Path) -> set[str]:
    """Files that are there for good, by their paths in a folder; the names of temporary ones begin with a dot."""
    found = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return {str(path) for path in found if not any(part.startswith(".") for part in path.parts)}


def _nothing(out: Path) -> str:
    found = sorted(names_in(out))
    return f"writes {found[0]}" if found else ""


def _bundle_whole(out: Path) -> str:
    folder = out / "b"
    if not folder.exists():
        return ""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if (folder / "golden.json").exists():  # exact models have one
            json.loads((folder / "golden.json").read_text())
        found = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        return f"a bundle that is none: {error}"
    if found != manifest["onnx"]["sha256"]:
        return "a bundle of two exports"
    plan = folder / "engine.plan"
    size = plan.stat().st_size if plan.exists() else 0
    # A plan that nobody describes yet is one whose build was ended before it was written down.
    return "the engine that is described is none" if manifest.get("engine") and not size else ""


def _models_whole(out: Path) -> str:
    for path in out.glob("[!.]*.pt"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            return f"{path.name} is half written: {error}"
        if broken:
            return f"{path.name} is half written: {broken}"
    return ""


def _images_whole(out: Path) -> str:
    large = out / "large"
    paths = list(large.glob("[!.]*")) if large.is_dir() else list(out.glob("large.png"))
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
