"""A graph of somebody else is run elsewhere first; what the program wrote itself is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from odm_deploy.bundle.manifest import ONNX_FILE, Manifest
from odm_deploy.errors import InputError
from odm_deploy.files import file_sha256
from odm_deploy.runtimes.onnx import trial
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


def test_what_does_not_end_is_a_line(graph, monkeypatch):
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.01)
    with pytest.raises(InputError, match="takes more than"):
        trial.try_in_child("onnxruntime", graph, "it.onnx")


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
