"""What may be where a verb writes, however it ended: each says what is wrong there, and is empty for nothing."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import av
import onnx
from PIL import Image

from torture.material import FRAMES, IMAGES, POSTER, SIZE


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


def nothing(out: Path) -> str:
    """Nothing at all."""
    found = sorted(names_in(out))
    return f"writes {found[0]}" if found else ""


def bundle_whole(out: Path) -> str:
    """A bundle `b`, whole, or none."""
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


def models_whole(out: Path) -> str:
    """Every .pt whole."""
    for path in out.glob("[!.]*.pt"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            return f"{path.name} is half written: {error}"
        if broken:
            return f"{path.name} is half written: {broken}"
    return ""


def images_whole(out: Path) -> str:
    """Upscaled images of the right size."""
    large = out / "large"
    paths = list(large.glob("[!.]*")) if large.is_dir() else list(out.glob("large.png"))
    problems = [problem for path in paths if (problem := _image_whole(path, SIZE))]
    return problems[0] if problems else "" if len(paths) <= IMAGES else f"{len(paths)} images of {IMAGES}"


def poster_whole(out: Path) -> str:
    """The large image `poster.png`, whole, or none."""
    path = out / "poster.png"
    return _image_whole(path, POSTER) if path.exists() else ""


def _image_whole(path: Path, size: tuple[int, int]) -> str:
    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
    except OSError as error:
        return f"{path.name} is half written: {error}"
    return "" if found == (2 * size[1], 2 * size[0]) else f"{path.name} is {found}"


def video_whole(out: Path) -> str:
    """A video `large.mp4` of all frames, or none."""
    path = out / "large.mp4"
    if not path.exists():
        return ""
    try:
        with av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
    except OSError as error:
        return f"a video that is none: {error}"
    return "" if frames == FRAMES else f"{frames} frames of {FRAMES}"


def ends_with(path: Path, end: str) -> str:
    """A text that ends so, or none."""
    if not path.exists():
        return ""
    return "" if path.read_text(encoding="utf-8").rstrip().endswith(end) else f"{path.name} is half written"


def triton_whole(out: Path) -> str:
    """A bundle, and a Triton repository of it, each whole or not there."""
    models = sorted(out.glob("served/[!.]*"))
    lacking = [f"{model.name}/{name}" for model in models for name in _SERVED if not (model / name).is_file()]
    return bundle_whole(out) or (f"{lacking[0]} is missing" if lacking else "")


_SERVED = ("config.pbtxt", "manifest.json", "1/model.onnx")


def graph_whole(out: Path) -> str:
    """A graph `fixed.onnx` that parses and checks, or none."""
    path = out / "fixed.onnx"
    if not path.exists():
        return ""
    try:
        onnx.checker.check_model(onnx.load(path))
    except Exception as error:
        return f"a graph that is none: {error}"
    return ""


def json_whole(out: Path) -> str:
    """What was printed, as JSON."""
    try:
        json.loads((out / PRINTED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"ends with 0, and what it printed is no JSON: {error}"
    return ""


def frames_whole(out: Path) -> str:
    """What was printed, as both frames at twice the size."""
    size, expected = (out / PRINTED).stat().st_size, 2 * (3 * 32 * 24)
    return "" if size > expected else f"ends with 0, and {size} bytes are no two frames of {expected // 2}"


PRINTED = "printed"
"""The file that takes standard output where that is the result."""
