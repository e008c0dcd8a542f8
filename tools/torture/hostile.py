"""Damaged files before every verb that reads such files: each ends as documented, in a line, soon and small."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torture.forked import Call, odm_deploy, run_forked, training
from torture.material import Material
from torture.mutating import damaged_bytes, damaged_json, damaged_torch_file

Damage = Callable[[bytes, random.Random], bytes]
_RUN = ("--runtime", "onnxruntime")


@dataclass(frozen=True)
class Kind:
    """Files of one kind, how they are damaged, and who reads them."""

    seeds: tuple[Path, ...]
    damage: Damage
    readers: tuple[Callable[[Path, Path], Call], ...]
    """From the damaged file and a folder for results to a command."""


@dataclass
class Tally:
    """What was tried and what failed."""

    tried: Counter[str] = field(default_factory=Counter[str])
    failed: list[str] = field(default_factory=list[str])


def kinds_of(made: Material) -> dict[str, Kind]:
    """Every kind of file that commands read."""
    bundle, photo = made.bundle, made.images / "0.png"

    def in_bundle(path: Path) -> Path:
        """The damaged file in the place of the bundle's own."""
        folder = path.parent / "bundle"
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        shutil.copy(path, folder / path.name)
        return folder

    def upscale_with(path: Path, out: Path) -> Call:
        return odm_deploy("upscale", photo, out / "large.png", "--model", in_bundle(path), *_RUN)

    def verify(path: Path, out: Path) -> Call:
        return odm_deploy("verify", in_bundle(path), *_RUN)

    photos = tuple(sorted(made.folder.glob("photo.*")))
    return {
        "model.pt": Kind((made.model,), damaged_torch_file, (lambda path, out: odm_deploy("inspect", path),)),
        "weights": Kind(
            (made.weights,),
            damaged_torch_file,
            (
                lambda path, out: odm_deploy(
                    *("quantize", path, "--images", made.images, "-o", out / "m.pt", "--bits", "8", "--no-fit")
                ),
            ),
        ),
        "manifest": Kind((bundle / "manifest.json",), damaged_json, (upscale_with, verify)),
        "golden": Kind((bundle / "golden.json",), damaged_json, (verify,)),
        "ONNX": Kind(
            (bundle / "model.onnx",),
            damaged_bytes,
            (lambda path, out: odm_deploy("lint", path), upscale_with, verify),
        ),
        "images": Kind(
            photos,
            damaged_bytes,
            (lambda path, out: odm_deploy("upscale", path, out / "large.png", "--model", bundle, *_RUN),),
        ),
        "video": Kind(
            (made.clip,),
            damaged_bytes,
            (lambda path, out: odm_deploy("upscale", path, out / "large.mp4", "--model", bundle, *_RUN),),
        ),
        "recipe": Kind(
            (made.recipe,), damaged_bytes, (lambda path, out: training(path, "--out", out / "run", "--finish"),)
        ),
        "plan": Kind(
            (bundle / "model.onnx", made.recipe),
            lambda data, rng: b"ftrt" + damaged_bytes(data[: rng.randrange(4096)], rng),
            (lambda path, out: odm_deploy("bench", path.rename(path.with_suffix(".plan"))),),
        ),
    }


WEIGHTS = {"weights": 1, "video": 4, "golden": 3}
"""How often a kind is drawn; 6 times where nothing is said. Cheap ones are drawn more."""


def throw(made: Material, count: int, seed: int, wanted: str = "", deadline: float = math.inf) -> Tally:
    """Throw `count` damaged files at commands, of one kind or of all; `deadline` is one of time.monotonic."""
    tally, rng = Tally(), random.Random(seed)
    kinds = {name: kind for name, kind in kinds_of(made).items() if wanted in ("", name)}
    names = [name for name in kinds for _ in range(WEIGHTS.get(name, 6))]
    for index in range(count):
        if time.monotonic() > deadline:
            break
        name = rng.choice(names)
        kind = kinds[name]
        seed_file = rng.choice(kind.seeds)
        with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
            folder = Path(scratch)
            (folder / "out").mkdir()
            path = folder / seed_file.name
            path.write_bytes(kind.damage(seed_file.read_bytes(), rng))
            outcome = run_forked(rng.choice(kind.readers)(path, folder / "out"), folder=folder)
            tally.tried[name] += 1
            fault = outcome.fault or _half_written(folder / "out", outcome.code)
            if fault:
                tally.failed.append(f"{name}, seed {seed}, {index}: {fault}")
                kept = made.folder / "failed"
                kept.mkdir(exist_ok=True)
                for each in folder.glob(f"{Path(seed_file.name).stem}.*"):
                    shutil.copy(each, kept / f"{seed}-{index}-{each.name}")
    return tally


def _half_written(out: Path, code: int) -> str:
    """What a failed command left; of a film that was cut off, what was there is upscaled, and the code says so."""
    left = [path.name for path in out.iterdir() if path.suffix != ".mp4" and path.name != "run"]
    return f"ends with {code} and leaves {', '.join(left)}" if code and left else ""
