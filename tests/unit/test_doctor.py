"""What doctor knows about a machine."""

from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from odm_deploy.cli.doctor import command
from odm_deploy.doctor import conflicting_onnxruntimes, look_around
from odm_deploy.machine.host import cpu_features, cpu_name, describe_cpu, physical_cpus
from odm_deploy.runtimes.registry import why_unusable


def test_versions_are_those_of_the_imported_packages() -> None:
    import onnxruntime

    packages = look_around().packages
    assert packages["numpy"] == np.__version__
    assert packages["onnxruntime"] == onnxruntime.__version__


def test_abilities_agree_with_the_runtimes_they_stand_for() -> None:
    abilities = {ability.name: ability for ability in look_around().abilities}
    cpu, gpu = abilities["run and bench on the CPU"], abilities["run and bench on the GPU"]
    assert cpu.works
    assert cpu.with_what == "openvino, onnxruntime"
    if gpu.works:
        assert not (why_unusable("tensorrt") and why_unusable("tensorrt_rtx"))
    for ability in abilities.values():
        # Either what it would use, or what it lacks.
        assert bool(ability.with_what) == ability.works != bool(ability.problem), ability


def test_what_an_extra_adds_is_told_with_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {
        "quantize what spandrel knows": ("spandrel", "--no-deps spandrel"),
        "upscale video files": ("av", "[video]"),
        "write reports": ("jinja2", "[report]"),
        "upscale over HTTP": ("uvicorn", "[serve]"),
    }
    missing = {module for module, _ in needs.values()}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    abilities = {ability.name: ability for ability in look_around().abilities}
    assert abilities["quantize"].works
    for name, (module, fix) in needs.items():
        assert module in abilities[name].problem
        assert fix in abilities[name].fix


def test_clashing_onnx_runtimes_are_noticed() -> None:
    assert conflicting_onnxruntimes(["onnxruntime", "numpy"]) == ""
    warning = conflicting_onnxruntimes(["onnxruntime-gpu", "onnxruntime"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in warning


def test_the_cpu_has_a_name_cores_and_known_features() -> None:
    assert cpu_name()
    assert 1 <= physical_cpus() <= (os.cpu_count() or 1)
    assert len(set(cpu_features())) == len(cpu_features())
    assert describe_cpu(1) == f"{cpu_name()}, 1 thread"
    assert describe_cpu(3).endswith("3 threads")


def test_the_command_prints_the_same_facts_for_people_and_for_tools() -> None:
    text = CliRunner().invoke(command)
    document = CliRunner().invoke(command, ["--json"])
    assert text.exit_code == document.exit_code == 0
    facts = json.loads(document.stdout)
    assert facts == look_around().to_dict()
    for name, version in facts["packages"].items():
        assert f"{name} " in text.stdout
        assert (version or "-") in text.stdout
    for ability in facts["abilities"]:
        assert ability["name"] in text.stdout
        assert (ability["with_what"] or ability["problem"]) in text.stdout
