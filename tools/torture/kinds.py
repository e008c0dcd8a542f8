"""Every kind of file that commands read: how it is damaged, and who reads it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from odm_deploy.files import file_sha256
from torture.commands import Command, odm_deploy, training
from torture.damaging_onnx import damaged_onnx
from torture.material import Material
from torture.mutating import damaged_bytes, damaged_json, damaged_toml, damaged_torch_file

Damage = Callable[[bytes, random.Random], bytes]
Reader = Callable[[Path, Path], Command]
"""From the damaged file and a folder for results to a command."""
_ORT = ("--runtime", "onnxruntime")


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    seeds: tuple[Path, ...]
    damage: Damage
    readers: tuple[Reader, ...]
    weight: int = 6
    """How often it is drawn."""


def kinds_of(made: Material) -> dict[str, Kind]:
    """All of them by name."""
    bundle, photo = made.bundle, made.images / "0.png"

    def in_bundle(path: Path, described: str = "") -> Path:
        """The damaged file in the place of the bundle's own; with its hash in that entry of the manifest, if named."""
        folder = path.parent / "bundle"
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        shutil.copy(path, folder / path.name)
        if described:
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest[described]["sha256"] = file_sha256(path)
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def upscale(described: str = "", *options: str) -> Reader:
        return lambda path, out: odm_deploy(
            *("upscale", photo, out / "large.png", "--model", in_bundle(path, described), *(options or _ORT))
        )

    def verify(described: str = "", *options: str) -> Reader:
        return lambda path, out: odm_deploy("verify", in_bundle(path, described), *(options or _ORT))

    def quantize(path: Path, out: Path) -> Command:
        options = ("--images", made.images, "-o", out / "m.pt", "--bits", "8", "--no-fit")
        return odm_deploy("quantize", path, *options)

    def export(path: Path, out: Path) -> Command:
        return odm_deploy("export", path, "-o", out / "b", "--no-engine")

    def upscaled(suffix: str) -> Reader:
        return lambda path, out: odm_deploy("upscale", path, out / f"large.{suffix}", "--model", bundle, *_ORT)

    def override(path: Path, out: Path) -> Command:
        words = path.read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")[:100_000].splitlines() or [""]
        return training(made.recipe, "--out", out / "run", "--finish", "--set", words[len(words) // 2])

    photos = tuple(sorted(made.folder.glob("photo.*")))

    def inspect(path: Path, out: Path) -> Command:
        return odm_deploy("inspect", path)

    openvino = ("--runtime", "openvino")
    return {
        "model.pt": Kind((made.model,), damaged_torch_file, (inspect, inspect, inspect, export), 8),
        "weights": Kind((made.weights,), damaged_torch_file, (quantize,), 3),
        "manifest": Kind((bundle / "manifest.json",), damaged_json, (upscale(), verify()), 10),
        "golden record": Kind((bundle / "golden.json",), damaged_json, (verify(),)),
        "ONNX": Kind(
            (bundle / "model.onnx", bundle / "model.cpu.onnx"),
            damaged_onnx,
            (lambda path, out: odm_deploy("lint", path),),
            14,
        ),
        "ONNX of a bundle, hash adjusted": Kind(
            (bundle / "model.onnx",), damaged_onnx, (upscale("onnx"), verify("onnx"), upscale()), 4
        ),
        "ONNX for CPUs, hash adjusted": Kind(
            (bundle / "model.cpu.onnx",),
            damaged_onnx,
            (upscale("cpu_onnx", *openvino), verify("cpu_onnx", *openvino)),
            2,
        ),
        "ONNX without a bundle": Kind(
            (bundle / "model.onnx",),
            damaged_onnx,
            (lambda path, out: odm_deploy("bench", path, *_ORT, "--size", "32x24", "--seconds", "0.01"),),
            1,
        ),
        "images": Kind(photos, damaged_bytes, (upscaled("png"),), 8),
        "video": Kind((made.clip,), damaged_bytes, (upscaled("mp4"),), 6),
        "frames in a pipe": Kind(
            (made.frames,),
            damaged_bytes,
            (lambda path, out: odm_deploy("upscale", "-", "-", "--model", bundle, *_ORT, stdin=path),),
        ),
        "recipe": Kind((made.recipe,), damaged_toml, (lambda p, out: training(p, "--out", out / "run", "--finish"),)),
        "recipe override": Kind((made.recipe,), damaged_toml, (override,)),
        "plan": Kind(
            (bundle / "model.onnx", made.recipe),
            lambda data, rng: b"ftrt" + damaged_bytes(data[: rng.randrange(4096)], rng),
            (lambda path, out: odm_deploy("bench", path.rename(path.with_suffix(".plan"))),),
        ),
    }
