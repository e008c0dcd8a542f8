"""The shipped sample images: a complete benchmark set, small, and what tools/make_samples.py draws."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.imaging.resize import downscale
from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def script(pytestconfig):
    return pytestconfig.rootpath / "tools" / "make_samples.py"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    load_tool("make_samples").main.main([str(folder)], standalone_mode=False)
    return folder


def test_samples_are_a_benchmark_set(samples):
    files = find_pairs(samples, 4)
    assert [file.name for file in files] == ["foliage", "gratings", "lettering", "street"]
    for pair in (file.load() for file in files):
        assert pair.high.shape == (288, 384, 3)
        assert np.array_equal(pair.low, downscale(pair.high, 4)[0])


def test_samples_are_small(samples):
    assert sum(path.stat().st_size for path in samples.rglob("*.png")) < 600_000


def test_samples_are_what_the_tool_draws(samples, drawn):
    for path in sorted(samples.rglob("*.png")):
        fresh = read_rgb(drawn / path.relative_to(samples)).astype(int)
        # Sines differ by a last bit between processors, which may tip a point over an edge.
        difference = np.abs(fresh - read_rgb(path))
        assert (difference > 1).mean() < 1e-3, path.name
        assert difference.mean() < 0.01, path.name


def test_drawing_again_in_another_process_gives_the_same_bytes(drawn, script, tmp_path):
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    first = {path.relative_to(drawn): path.read_bytes() for path in drawn.rglob("*.png")}
    second = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(first) == 8
    assert first == second
