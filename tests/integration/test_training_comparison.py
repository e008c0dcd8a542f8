"""The comparison tools on a tiny network: one table, not trained twice, unlike runs refused, and a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
    table = (out / "results.md").read_text()
    assert len(table[: table.index("\n\n")].splitlines()) == 2 + 4
    assert "One seed only" in table
    again = compare(recipes)
    assert again.returncode == 0
    assert "iterations" not in again.stderr
    assert {row["recipe"]: row for row in json.loads((out / "results.json").read_text())} == rows


def test_seeds_make_intervals_and_can_be_added_later(recipes):
    """Independent: the interval of two values in numpy, Student's t with one degree of freedom."""
    out = recipes[0].parent / "out"
    assert compare(recipes[:1], "--seeds", "1").returncode == 0
    first = json.loads((out / "results.json").read_text())
    assert compare(recipes[:1], "--seeds", "1,2").returncode == 0
    rows = json.loads((out / "results.json").read_text())
    assert [row["seed"] for row in rows] == [1, 1, 2]
    assert rows[:2] == first
    values = [row["psnr_y_db"]["Set"] for row in rows[1:]]
    assert values[0] != values[1]
    half_width = 12.706 * np.std(values, ddof=1) / np.sqrt(2)
    (line,) = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("| odm_v2")]
    assert f"| 2 | {np.mean(values):.3f} ± {half_width:.3f} /" in line
    refused = compare(recipes[:1], "--seeds", "1,one")
    assert refused.returncode == 2
    assert "different whole numbers" in refused.stderr


def test_processes_started_side_by_side_share_the_runs(recipes):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: compare(recipes, "--seeds", "1,2"), range(2)))
    assert [each.returncode for each in done] == [0, 0], done
    folders = [path.parent.name for path in (recipes[0].parent / "out").glob("*/result.json")]
    assert len(folders) == 7  # the start, and three methods with two seeds
    started = [
        line for each in done for line in (each.stdout + each.stderr).splitlines() if line.startswith("starting:")
    ]
    assert len(started) == 6


def test_full_budgets_may_differ_when_asked_for(recipes):
    recipes[1].write_text('extends = "base.toml"\n[method]\nname = "minmax"\n[run]\nbatch = 1\n')
    assert compare(recipes[:2], "--own-budgets").returncode == 0


def test_an_equalized_start_is_a_variant(recipes):
    done = compare(recipes[:1], "--variant", "network.equalize=true")
    assert done.returncode == 0, done.stderr
    rows = json.loads((recipes[0].parent / "out" / "results.json").read_text())
    start, plain, evened = [row["psnr_y_db"]["Set"] for row in rows]
    assert len({start, plain, evened}) == 3


def test_unlike_runs_are_refused(recipes):
    recipes[1].write_text('extends = "base.toml"\n[method]\nname = "daq"\n[run]\nbatch = 4\n')
    result = compare(recipes)
    assert result.returncode == 2
    assert "cannot be compared" in result.stderr


def test_stored_results_make_tables_and_a_picture(recipes, tmp_path):
    out, picture = tmp_path / "out", tmp_path / "front.png"
    timing = ["--runtime", "onnxruntime", "--size", "24x16", "--seconds", "0.1", "-o", str(picture)]

    def tool(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    empty = tool("tools/compare_methods.py", "--out", str(out))
    assert empty.returncode == 1
    assert "name recipes to train" in empty.stderr
    missing = tool("tools/pareto.py", str(out), *timing)
    assert missing.returncode == 1
    assert "results.json" in missing.stderr
    assert compare(recipes[:1], "--variant", "method=minmax").returncode == 0
    (out / "results.md").unlink()
    assert tool("tools/compare_methods.py", "--out", str(out)).returncode == 0
    assert "odm_v2" in (out / "results.md").read_text()
    drawn = tool("tools/pareto.py", str(out), *timing)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(picture) as image:
        assert image.width > 500
    rows = picture.with_suffix(".md").read_text().splitlines()[2:]
    names = [row.split("|")[1].strip() for row in rows]
    assert sorted(name.strip("*") for name in names) == ["float", "odm_v2", "odm_v2,method=minmax"]
    # The fastest is on the front, whatever it is, among those whose latencies were steady on this machine just now.
    steady = [name for name, row in zip(names, rows, strict=True) if "unsteady" not in row]
    assert all(name.startswith("**") for name in steady[:1])


def test_a_cell_of_the_paper_runs_small_and_the_plan_lists_it(recipes, tmp_path):
    def paper(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "tools/paper.py", *options]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, check=False)

    listed = paper("--dry-run", "--table", "5")
    assert listed.returncode == 0, listed.stderr
    assert "5/max+cooperative" in listed.stdout
    assert "11 cells x 3 seeds" in listed.stdout
    small = [f"data.folders={tmp_path / 'images'}", "data.validation_folders=[]", "data.validation_images=1"]
    small += ["data.patch=8", "network.scale=2", f"network.weights={tmp_path / 'weights.pt'}"]
    options = [word for setting in small for word in ("--set", setting)]
    out = tmp_path / "paper"
    cells = ("--cell", "5/max", "--cell", "5/max+cooperative", "--device", "cpu", *options, "--out", str(out))
    missing = paper(*cells, "--benchmark", str(tmp_path / "Urban100"))
    assert missing.returncode == 1
    assert "--benchmark PATH" in missing.stderr
    assert not list(out.glob("*/log.jsonl"))
    done = paper(*cells, "--iterations", "3", "--seeds", "2", "--benchmark", str(tmp_path / "Set"))
    assert done.returncode == 0, done.stderr
    assert "| 5/max | 3 | 2 |" in (out / "paper.md").read_text()
    assert "±" in (out / "paper.md").read_text()
    # Four images of the training folder, each at two sizes, decoded once for four runs.
    assert len(list((out / "cache").iterdir())) == 8
    assert paper("--cell", "5/none").returncode == 2
    assert paper(*cells, "--figures").returncode == 0
    for figure in ("figure1", "figure2", "figure3", "figure5"):
        with Image.open(out / f"{figure}.png") as image:
            assert min(image.size) > 200
