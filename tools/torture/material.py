"""A tiny model, its bundle, images, a clip and a recipe: made once, then damaged, killed and overwritten."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torture.commands import odm_deploy
from torture.forked import run_all

FRAMES = 8
IMAGES = 3
SIZE = (24, 32)
"""Height and width of every image but one."""
POSTER = (96, 128)
"""Of that one."""


@dataclass(frozen=True)
class Material:
    """Where everything lies; made by `make_material`, and not changed afterwards."""

    folder: Path
    weights: Path
    """Float weights of an EDSR x2."""
    model: Path
    """It in profile exact."""
    bundle: Path
    """The bundle of that, with golden outputs and without an engine."""
    images: Path
    """A folder of images."""
    poster: Path
    """An image whose result takes many writes."""
    dataset: Path
    """The images as a benchmark set with ground truth."""
    clip: Path
    """A video of `FRAMES` frames."""
    frames: Path
    """Two frames as y4m."""
    recipe: Path
    """A training run of a second or two."""


_NAMES = (
    *("weights.pt", "model.pt", "bundle", "images", "poster.png", "dataset"),
    *("clip.mp4", "frames.y4m", "recipe.toml"),
)
"""Of what lies in the folder, in the order of the fields."""


def make_material(folder: Path) -> Material:
    """Make all of it in processes of their own, so that this one stays without threads."""
    made = Material(folder, *(folder / name for name in _NAMES))
    folder.mkdir(parents=True, exist_ok=True)
    quantize = odm_deploy(
        *("quantize", made.weights, "--network", "edsr", "--scale", "2", "--bits", "4", "--profile", "exact"),
        *("--images", made.images, "-o", made.model, "--no-fit"),
    )
    export = odm_deploy("export", made.model, "-o", made.bundle, "--no-engine")
    run_all([lambda: _draw(made), lambda: _write_weights(made), lambda: _film(made), quantize, export], folder)
    return made


def _draw(made: Material) -> None:
    from PIL import Image

    made.images.mkdir()
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(made.images / f"{index}.png")
        small, truth = made.dataset / "LR_bicubic" / "X2", made.dataset / "HR"
        for folder, side in ((small, 1), (truth, 2)):
            folder.mkdir(parents=True, exist_ok=True)
            size = (SIZE[1] * side, SIZE[0] * side)
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}{'x2' if side == 1 else ''}.png")
    poster = random.integers(0, 256, (*POSTER, 3), dtype=np.uint8)
    Image.fromarray(poster).save(made.poster)
    photo = Image.open(made.images / "0.png")
    for suffix in ("jpg", "gif", "webp", "tif", "bmp", "ppm"):
        photo.save(made.folder / f"photo.{suffix}")
    photo.save(made.folder / "photo.png")
    made.frames.write_bytes(b"YUV4MPEG2 W16 H12 F25:1 C444\n" + 2 * (b"FRAME\n" + random.bytes(3 * 16 * 12)))


def _write_weights(made: Material) -> None:
    import torch

    from odm_deploy.networks.registry import build_network

    torch.manual_seed(1)
    torch.save(build_network("edsr", {"scale": 2, "features": 6, "blocks": 2}).state_dict(), made.weights)
    made.recipe.write_text(
        f"""[network]
scale = 2
weights = "{made.weights}"
[quantization]
body = "w4a4"
[method]
name = "odm_v2"
[data]
folders = ["{made.images}"]
patch = 8
validation_images = 1
calibration_batches = 1
[optimizer]
ema_decay = 0.9
[run]
iterations = 24
batch = 2
checkpoint_every = 4
validate_every = 12
"""
    )


def _film(made: Material) -> None:
    import av

    with av.open(str(made.clip), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        random = np.random.default_rng(1)
        for _ in range(FRAMES):
            picture = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def scratch_free(folder: Path) -> list[str]:
    """Temporary names that were left in a folder."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("."))
