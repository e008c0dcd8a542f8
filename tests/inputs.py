"""What people start from: float weights, and a folder of images."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from odm_deploy.networks.registry import build_network
from tests.factories import random_images


def edsr_weights(path: Path, *, scale: int = 2, features: int = 8, blocks: int = 2) -> Path:
    """Write random weights of a small EDSR; returns `path`."""
    torch.manual_seed(0)
    torch.save(build_network("edsr", {"scale": scale, "features": features, "blocks": blocks}).state_dict(), path)
    return path


def image_folder(folder: Path, count: int, height: int, width: int) -> Path:
    """Write images 0.png, 1.png, ... into a folder, which is made where it is not there; returns that."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        pixels = random_images(height, width, seed=index)[0].transpose(1, 2, 0).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
