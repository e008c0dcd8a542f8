"""A tiny model.pt and its bundles, made once: what the verbs of the command line are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.imaging.writing import write_image
from tests.command_line import run_cli
from tests.factories import random_images, tiny_model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt` of a tiny EDSR x2 with 8-bit asymmetric ranges."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_model(tiny_model(8), path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its bundle without an engine, as `odm-deploy export --no-engine` writes it. Read-only."""
    folder = tiny_checkpoint.parent / "bundle"
    outcome = run_cli("export", tiny_checkpoint, "-o", folder, "--no-engine")
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark set at x2: two images with HR/ and LR_bicubic/X2/."""
    root = tmp_path_factory.mktemp("Tiny")
    for index, (height, width) in enumerate(((24, 32), (19, 26))):
        low = random_images(height, width, seed=index)[0].transpose(1, 2, 0).astype(np.uint8)
        write_image(root / f"LR_bicubic/X2/{index}x2.png", low)
        write_image(root / f"HR/{index}.png", low.repeat(2, 0).repeat(2, 1))
    return root
