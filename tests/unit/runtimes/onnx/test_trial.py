"""A graph of somebody else is run elsewhere first; what the program wrote itself is not."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import onnx
import pytest

from odm_deploy.bundle.manifest import ONNX_FILE, Manifest
from odm_deploy.errors import InputError
from odm_deploy.files import file_sha256
from odm_deploy.runtimes.onnx import base, openvino_probe, trial
from odm_deploy.runtimes.onnx.openvino_faults import needs_probe
from odm_deploy.runtimes.registry import open_runtime
from tests.factories import lowered, random_images, tiny_model


@pytest.fixture
def graph() -> bytes:
    return lowered(tiny_model()).SerializeToString()


def test_a_sound_graph_and_one_that_is_refused_pass(graph):
    trial.try_in_child("onnxruntime", graph, "it.onnx")
    trial.try_in_child("onnxruntime", b"nothing of the kind", "it.onnx")


def test_a_crash_is_a_line(graph, monkeypatch, tmp_path):
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(InputError, match=r"it\.onnx crashes onnxruntime.*ended with -11"):
        trial.try_in_child("onnxruntime", graph, "it.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_takes_all_memory_is_a_line_or_refused_by_the_runtime(runtime, tmp_path, monkeypatch):
    """Thirty doublings of an image ask for terabytes; the process that tries may have a few gigabytes."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered(tiny_model()))
    names = ["before", *(f"d{step}" for step in range(30)), "output"]
    next(node for node in model.graph.node if "output" in node.output).output[0] = "before"
    for a, b in pairwise(names):
        model.graph.node.append(onnx.helper.make_node("Concat", [a, a], [b], axis=2))
    monkeypatch.setattr(trial, "TIMEOUT_S", 60.0)
    with suppress(InputError):
        trial.try_in_child(runtime, model.SerializeToString(), "it.onnx")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 2 * trial.MEMORY_BYTES


def test_what_does_not_end_is_a_line(graph, monkeypatch):
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.01)
    with pytest.raises(InputError, match=r"it\.onnx does not get done on onnxruntime.*takes more than"):
        trial.try_in_child("onnxruntime", graph, "it.onnx")


def test_a_graph_that_may_grow_is_tried_whatever_its_manifest_says(monkeypatch, tmp_path):
    tried = []
    monkeypatch.setattr(base, "try_in_child", lambda *args: tried.append(args))
    monkeypatch.setattr(base, "may_grow", lambda graph: True)
    path = tmp_path / ONNX_FILE
    path.write_bytes(lowered(tiny_model()).SerializeToString())
    Manifest({"scale": 2}, {}, {"sha256": file_sha256(path)}, None, {}).write(tmp_path)
    open_runtime(tmp_path, "onnxruntime").close()
    assert len(tried) == 1


def test_only_files_that_no_manifest_describes_are_tried(graph, monkeypatch, tmp_path):
    tried = []
    run = subprocess.run
    monkeypatch.setattr(trial.subprocess, "run", lambda *args, **keys: tried.append(args) or run(*args, **keys))
    path = tmp_path / ONNX_FILE
    path.write_bytes(graph)
    with open_runtime(path, "onnxruntime") as runtime:
        runtime.upscale(random_images(8, 8))
    assert len(tried) == 1
    Manifest({"scale": 2}, {}, {"sha256": file_sha256(path)}, None, {}).write(tmp_path)
    open_runtime(tmp_path, "onnxruntime").close()
    assert len(tried) == 1
    path.write_bytes(graph + b"\x08\x0a")
    open_runtime(tmp_path, "onnxruntime").close()
    assert len(tried) == 2


def test_what_was_tried_on_openvino_is_not_compiled_in_yet_another_process(monkeypatch, tmp_path):
    processes, probed = [], []
    run = subprocess.run
    monkeypatch.setattr(trial.subprocess, "run", lambda *args, **keys: processes.append(args) or run(*args, **keys))
    monkeypatch.setattr(openvino_probe, "compile_elsewhere", lambda model: probed.append(model) or 0)
    model = lowered(tiny_model())
    next(node for node in model.graph.node if "output" in node.output).output[0] = "before"
    for a, b in pairwise(["before", "negative", "output"]):
        model.graph.node.append(onnx.helper.make_node("Neg", [a], [b]))
    assert needs_probe(model)
    (tmp_path / ONNX_FILE).write_bytes(model.SerializeToString())
    open_runtime(tmp_path / ONNX_FILE, "openvino").close()
    assert (len(processes), len(probed)) == (1, 0)
