"""The step timer: every recipe and variant is timed on the same patches, side by side."""

from __future__ import annotations

import json

import pytest

from odm_deploy.errors import OdmError
from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def tool():
    return load_tool("step_time")


@pytest.fixture
def recipes(samples, tmp_path):
    shared = f"""
[network]
scale = 2
weights = ""
config = {{ features = 8, blocks = 2 }}
[data]
folders = ["{samples / "HR"}"]
patch = 16
validation_images = 0
[run]
batch = 2
[method]
"""
    for name, method in (("plain", 'name = "minmax"'), ("odm", 'name = "odm_v2"\nmismatch_every = 2')):
        (tmp_path / f"{name}.toml").write_text(shared + method)
    return [str(tmp_path / "plain.toml"), str(tmp_path / "odm.toml")]


def test_ratios_are_to_the_first_recipe(tool, recipes, capsys):
    tool.command(
        [*recipes, "--rounds", "3", "--variant", "run.batch=4,run.autocast=true", "--json"], standalone_mode=False
    )
    rows = json.loads(capsys.readouterr().out)["steps"]
    variant = "run.batch=4,run.autocast=true"
    assert [row["recipe"] for row in rows] == ["plain", "odm", f"plain,{variant}", f"odm,{variant}"]
    assert rows[0]["ratio"] == 1.0
    for row in rows:
        assert row["seconds_per_step"] > 0
        assert row["steps_per_second"] == pytest.approx(1 / row["seconds_per_step"])


def test_a_setting_that_does_not_exist_is_named(tool, recipes):
    with pytest.raises(OdmError, match=r"run\.fast"):
        tool.command([*recipes, "--variant", "run.fast=true"], standalone_mode=False)
