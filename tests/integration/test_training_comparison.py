"""The comparison tool on a tiny network: one table, not trained twice, unlike runs refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odm_deploy.networks.edsr import EDSR, EdsrConfig

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipes(tmp_path) -> list[Path]:
    torch.manual_seed(5)
    torch.save(EDSR(EdsrConfig(scale=2, features=6, blocks=2)).state_dict(), tmp_path / "weights.pt")
    random = np.random.default_rng(0)
    for folder in ("images", "Set/HR"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(4):
            coarse = Image.fromarray(random.integers(0, 256, (7, 8, 3), dtype=np.uint8))
            coarse.resize((48, 40), Image.Resampling.BICUBIC).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "base.toml").write_text(f"""
[network]
scale = 2
weights = "{tmp_path / "weights.pt"}"
[data]
folders = ["{tmp_path / "images"}"]
patch = 8
validation_images = 1
[run]
batch = 2
""")
    paths = []
    for name in ("odm_v2", "daq", "float"):
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(f'extends = "base.toml"\n[method]\nname = "{name}"\n')
    return paths


def compare(recipes: list[Path], *options: str) -> subprocess.CompletedProcess[str]:
    root = recipes[0].parent
    return subprocess.run(
        [
            *(sys.executable, "tools/compare_methods.py", *map(str, recipes), "--iterations", "3"),
            *("--out", str(root / "out"), "--benchmark", str(root / "Set"), *options),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )


def test_methods_are_compared_and_not_trained_twice(recipes):
    first = compare(recipes)
    assert first.returncode == 0, first.stderr
    out = recipes[0].parent / "out"
    rows = {row["recipe"]: row for row in json.loads((out / "results.json").read_text())}
    assert list(rows) == ["start", "daq", "float", "odm_v2"]
    assert rows["odm_v2"]["exportable"] == "yes"
    assert "do not factor out" in rows["daq"]["exportable"]
    assert rows["odm_v2"]["storage_mb"] < rows["float"]["storage_mb"] == rows["start"]["storage_mb"]
    assert all(5 < row["psnr_y_db"]["Set"] < 60 for row in rows.values())
    assert len((out / "results.md").read_text().splitlines()) == 2 + 4
    again = compare(recipes)
    assert again.returncode == 0
    assert "iterations" not in again.stderr
    assert {row["recipe"]: row for row in json.loads((out / "results.json").read_text())} == rows


def test_unlike_runs_are_refused(recipes):
    recipes[1].write_text('extends = "base.toml"\n[method]\nname = "daq"\n[run]\nbatch = 4\n')
    result = compare(recipes)
    assert result.returncode == 2
    assert "cannot be compared" in result.stderr


def test_without_recipes_the_tables_are_made_of_what_was_measured(recipes, tmp_path):
    out = tmp_path / "out"
    tool = [sys.executable, "tools/compare_methods.py", "--out", str(out)]
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": False}
    empty = subprocess.run(tool, **options)
    assert empty.returncode == 1
    assert "name recipes to train" in empty.stderr
    assert compare(recipes[:1]).returncode == 0
    (out / "results.md").unlink()
    assert subprocess.run(tool, **options).returncode == 0
    assert "odm_v2" in (out / "results.md").read_text()
