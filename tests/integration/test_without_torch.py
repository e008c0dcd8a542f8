"""A machine that has no torch: what works there, and what says in one line why it does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from odm_deploy import Engine
from odm_deploy.checkpoint import save_model
from tests.command_line import run_cli, without_progress
from tests.exact_models import calibrated_exact


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    save_model(calibrated_exact("edsr"), folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine").code == 0
    return folder / "bundle"


def without_torch(*arguments):
    """`odm-deploy ARGUMENTS` in a process in which torch cannot be imported."""
    return without("torch", arguments=arguments)


def without(*packages, arguments):
    """`odm-deploy ARGUMENTS` in a process that finds none of these packages."""
    code = f"""
import importlib.util, sys
sys.modules.update(dict.fromkeys({packages}))
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {packages} else find(name, package)
from odm_deploy.cli import main
main()
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_commands_that_need_it_say_so_in_one_line(tiny_bundle, tiny_checkpoint, tiny_set, tmp_path):
    for arguments in (
        ("quantize", tiny_checkpoint, "--images", tiny_set / "HR", "-o", tmp_path / "model.pt"),
        ("export", tiny_checkpoint, "-o", tmp_path / "bundle"),
        ("inspect", tiny_checkpoint),
        ("eval", tiny_checkpoint, "--dataset", tiny_set),
        ("verify", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2"),
        ("report", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", tmp_path / "page.html"),
    ):
        done = without_torch(*arguments)
        assert done.returncode == 4, (arguments, done.stderr)
        assert done.stderr.splitlines()[-1].startswith("error: torch is not installed: ")
        assert without_progress(done.stderr).count("\n") == 1
        assert "[export]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_package_that_need_it_say_so_too():
    code = """
import sys
sys.modules["torch"] = None
import odm_deploy
from odm_deploy import MissingError
for name in odm_deploy.__all__:
    try:
        exec(f"from odm_deploy import {name}")
    except MissingError as error:
        print(name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(lines) == {"VerifyOptions", "quantize", "verify"}
    assert all(line.startswith("torch is not installed: ") and "[export]" in line for line in lines.values())


@pytest.mark.parametrize("verb", ["quantize", "sensitivity"])
def test_files_that_are_not_there_are_named_before_it_is_imported(verb, tiny_checkpoint, tiny_set, tmp_path):
    photos = shutil.copytree(tiny_set / "HR", tmp_path / "photos")
    (photos / "gone.png").symlink_to("nowhere.png")
    done = without_torch(verb, tiny_checkpoint, "--images", photos)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "gone.png: it is a link to nowhere" in done.stderr
    done = without_torch(verb, tmp_path / "weights.pth", "--images", photos)
    assert "weights.pth: there is no such file; check the path" in done.stderr


def test_graphs_are_checked_without_it_and_rewritten_with_a_small_package(tiny_bundle, tmp_path):
    graph = tiny_bundle / "model.onnx"
    done = without("torch", "onnx_ir", arguments=("lint", graph))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"{graph}: no findings")
    done = without("torch", "onnx_ir", arguments=("lint", "--fix", graph, "-o", tmp_path / "fixed.onnx"))
    assert done.returncode == 4
    assert done.stderr == "error: onnx_ir is not installed: graphs are rewritten with it; pip install onnx-ir\n"
    assert list(tmp_path.iterdir()) == []
    done = without("torch", arguments=("lint", "--fix", graph, "-o", tmp_path / "fixed.onnx"))
    assert done.returncode == 0, done.stderr


def test_bundles_run_without_it(tiny_bundle, tiny_set, tmp_path):
    done = without_torch("upscale", tiny_set / "LR_bicubic/X2/0x2.png", tmp_path / "out.png", "--model", tiny_bundle)
    assert done.returncode == 0, done.stderr


def test_exact_bundles_are_verified_without_it(exact_bundle):
    done = without_torch("verify", exact_bundle, "--golden", "--runtime", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"] is True
    assert document["golden"] == {"images": document["golden"]["images"], "identical": True, "first_layer": None}
    assert document["golden"]["images"] > 0


def test_golden_outputs_are_those_of_the_runtime_that_images_are_upscaled_on(exact_bundle):
    outcome = run_cli("verify", exact_bundle, "--json")
    with Engine.open(exact_bundle) as engine:
        assert outcome.document["runtime"]["runtime"] == engine.describe()["runtime"]


def test_golden_outputs_alone_find_a_changed_graph(exact_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exact_bundle, bundle)
    golden = json.loads((bundle / "golden.json").read_text())
    golden["images"][0]["output"] = "0" * 64
    (bundle / "golden.json").write_text(json.dumps(golden))
    outcome = run_cli("verify", bundle, "--runtime", "onnxruntime")
    assert outcome.code == 3
    assert "onnxruntime does not compute what was exported: 1 of " in outcome.stderr


def test_golden_outputs_go_without_images(exact_bundle, tiny_set):
    outcome = run_cli("verify", exact_bundle, "--golden", "--images", tiny_set / "HR")
    assert outcome.code == 2
    assert "--golden goes without --images" in outcome.stderr


def test_without_images_there_have_to_be_golden_outputs(tiny_bundle):
    outcome = run_cli("verify", tiny_bundle)
    assert outcome.code == 2
    assert "only exact models have; add --images DIR" in outcome.stderr
