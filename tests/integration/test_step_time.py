"""The step timer: every recipe and variant is timed on the same patches, side by side."""

from __future__ import annotations

import json

import click
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


def test_a_variant_that_fails_says_why_and_ends_no_other(tool, recipes, tmp_path, capsys):
    wrong, right = "network.config={features = -1}", "run.batch=1"
    kept = tmp_path / "steps.json"
    options = ("--rounds", "2", "--round", "1", "--variant", wrong, "--variant", right, "--output", str(kept))
    tool.command([recipes[0], *options], standalone_mode=False)
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads(kept.read_text())["steps"]
    assert [row["recipe"] for row in rows] == ["plain", f"plain,{wrong}", f"plain,{right}"]
    assert "seconds_per_step" not in rows[1]
    assert rows[1]["failed"] in printed[1]
    assert [rows[0]["turns"], rows[2]["turns"]] == [2, 2]
    assert all(row["seconds_per_batch_made"] > 0 for row in (rows[0], rows[2]))


def test_what_is_timed_is_kept_when_the_tool_is_stopped(tool, recipes, tmp_path, monkeypatch):
    kept = tmp_path / "steps.json"
    take = tool.Stepper.take

    def stopped(stepper, steps):
        if kept.exists():
            raise KeyboardInterrupt
        return take(stepper, steps)

    monkeypatch.setattr(tool.Stepper, "take", stopped)
    with pytest.raises((KeyboardInterrupt, click.exceptions.Abort)):
        tool.command([*recipes, "--output", str(kept)], standalone_mode=False)
    assert [row["recipe"] for row in json.loads(kept.read_text())["steps"]] == ["plain"]


def test_where_nothing_can_be_timed_the_reason_is_the_error(tool, recipes):
    with pytest.raises(OdmError, match="nothing could be timed"):
        tool.command([recipes[0], "--set", "network.config={features = -1}"], standalone_mode=False)


def test_a_setting_that_does_not_exist_is_named(tool, recipes):
    with pytest.raises(OdmError, match=r"run\.fast"):
        tool.command([*recipes, "--variant", "run.fast=true"], standalone_mode=False)
