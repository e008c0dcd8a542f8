"""The README's picture: four views of one place, each where it belongs."""

from __future__ import annotations

import numpy as np

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.imaging.reading import read_rgb
from tests.command_line import run_cli
from tests.factories import tiny_model
from tests.tool_modules import load_tool


def test_the_panels_show_the_same_place(samples, tmp_path):
    tool = load_tool("readme_picture")
    save_model(tiny_model(scale=4), tmp_path / "model.pt")
    bundle = tmp_path / "bundle"
    assert run_cli("export", tmp_path / "model.pt", "-o", bundle, "--no-engine").code == 0
    arguments = [str(bundle), "-o", str(tmp_path / "picture.png"), "--place", "8", "18", "50"]
    tool.command(arguments, standalone_mode=False)
    picture = read_rgb(tmp_path / "picture.png")
    assert picture.shape == (200, 4 * 200 + 3 * tool.GAP_PX, 3)
    pixels, _bicubic, upscaled, original = (picture[:, start : start + 200] for start in range(0, 832, 208))
    low, high = (
        read_rgb(samples / folder / name) for folder, name in (("LR_bicubic/X4", "streetx4.png"), ("HR", "street.png"))
    )
    assert np.array_equal(pixels[::4, ::4], low[18:68, 8:58])
    assert np.array_equal(original, high[72:272, 32:232])
    with Engine.open(bundle) as engine:
        assert np.array_equal(upscaled, engine.upscale(low)[72:272, 32:232])
    assert (picture[:, 200:208] == 255).all()
