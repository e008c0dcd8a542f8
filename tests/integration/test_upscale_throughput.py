"""The throughput tool: three ways to the same images, and what it says about them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.errors import UsageError
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.imaging.writing import write_image
from tests.command_line import run_cli
from tests.factories import exact_model, random_images
from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("upscale_throughput")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        picture = random_images(20, 30, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8)
        write_image(folder / f"{seed}.png", picture)
    return folder


@pytest.mark.parametrize("suffix", ["png", "mp4"])
def test_every_way_is_timed_on_the_images_asked_for(tool, photos, tmp_path, capsys, suffix):
    save_model(exact_model(), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine").code == 0
    arguments = [
        str(tmp_path / "bundle"),
        str(photos),
        "--size",
        "16x24",
        "--count",
        "3",
        "--rounds",
        "2",
        "--format",
        suffix,
    ]
    tool.command([*arguments, "--runtime", "onnxruntime", "--threads", "1", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert list(document["costs"]) == ["network", "upscale", "loop"]
    for costs in document["costs"].values():
        assert len(costs) == 2
        assert all(cost["wall_s"] > 0 and cost["processor_s"] > 0 for cost in costs)
    # Reading and writing cost something, whatever hides it.
    spent = {way: min(cost["processor_s"] for cost in costs) for way, costs in document["costs"].items()}
    assert spent["network"] < spent["upscale"]
    assert spent["network"] < spent["loop"]


def test_inputs_are_cut_and_mirrored_to_size(tool, photos, tmp_path):
    paths = tool.cut_inputs(str(photos), tmp_path, (50, 10), 3)
    first, further = read_rgb(paths[0]), read_rgb(paths[2])
    assert first.shape == (50, 10, 3)
    np.testing.assert_array_equal(first[:20], first[20:40][::-1])
    np.testing.assert_array_equal(first[tool.PAN_PX :, tool.PAN_PX :], further[: -tool.PAN_PX, : -tool.PAN_PX])


def test_shares_are_medians_of_rounds(tool):
    costs = {
        "network": [tool.Cost(1.0, 2.0), tool.Cost(2.0, 2.0), tool.Cost(1.0, 2.0)],
        "upscale": [tool.Cost(1.25, 2.5), tool.Cost(4.0, 2.5), tool.Cost(1.25, 2.5)],
        "loop": [tool.Cost(2.0, 4.0)] * 3,
    }
    assert tool.table(costs, 10).splitlines()[2:] == [
        "| network | 100 ms | 100 % | 200 ms | 100 % |",
        "| upscale | 125 ms | 80 % | 250 ms | 80 % |",
        "| loop | 200 ms | 50 % | 400 ms | 50 % |",
    ]


def test_a_size_that_is_none_is_refused(tool, photos):
    with pytest.raises(UsageError, match="--size 180"):
        tool.command(["bundle", str(photos), "--size", "180"], standalone_mode=False)
