"""`odm-deploy quantize` as a process of its own: to a bundle, and what Ctrl-C and a kill in the middle leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.checkpoint import load_model
from tests.inputs import edsr_weights, image_folder

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "odm_deploy", "quantize", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def test_one_command_from_weights_to_a_bundle(tmp_path):
    folder = image_folder(tmp_path / "photos", 6, 64, 64)
    arguments = (
        edsr_weights(tmp_path / "edsr.pth"),
        "--images",
        folder,
        "--export",
        "bundle",
        "--no-engine",
    )
    outcome = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == ""
    assert "wrote bundle: manifest.json, model.cpu.onnx, model.onnx" in outcome.stderr
    assert read_manifest(tmp_path / "bundle").scale == 2
    assert len(load_model(tmp_path / "model.pt").layers) == 4


def test_ctrl_c_ends_it_with_130_and_leaves_nothing(tmp_path):
    folder = image_folder(tmp_path / "photos", 32, 320, 320)
    # Long enough that a line of progress, one every few seconds, comes before the end.
    arguments = (
        edsr_weights(tmp_path / "edsr.pth", features=64, blocks=16),
        "--images",
        folder,
        "--export",
        "bundle",
        "--no-engine",
    )
    before = {each.name for each in tmp_path.iterdir()}
    process = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
        start_new_session=True,
        # Shells let what they start in the background ignore Ctrl-C, and the tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert any(line.startswith("calibrating") for line in process.stderr), "it ended before it told how far it is"
    # Ctrl-C reaches the whole group.
    os.killpg(process.pid, signal.SIGINT)
    _, talk = process.communicate(timeout=300)
    assert process.returncode == 130, talk
    assert "Traceback" not in talk
    assert {each.name for each in tmp_path.iterdir()} == before


SIXTEENS = """
from torch import nn
class Sixteens(nn.Sequential):
    largest = 4096
    def __init__(self):
        super().__init__(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    def forward(self, x):
        if x.shape[2] % 16 or x.shape[3] % 16 or max(x.shape) > self.largest:
            raise ValueError("multiples of 16 are wanted")
        return x + 0.01 * super().forward(x)
class Small(Sixteens):
    largest = 64
"""


def test_a_network_that_cannot_be_exported_is_refused_before_it_is_calibrated(tmp_path):
    (tmp_path / "sixteens.py").write_text(SIXTEENS)
    torch.save(
        {
            f"{index}.{name}": torch.zeros(shape)
            for index in range(3)
            for name, shape in (("weight", (3, 3, 3, 3)), ("bias", (3,)))
        },
        tmp_path / "w.pth",
    )
    image_folder(tmp_path / "photos", 2, 64, 64)
    words = ["w.pth", "--images", "photos", "--lr", "--set", "input_range=1", "--network"]
    means = {
        "capture_output": True,
        "text": True,
        "env": {**environment(), "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"},
        "cwd": tmp_path,
        "check": False,
    }
    refused = subprocess.run(command(*words, "sixteens:Small", "--export", "bundle"), **means)
    assert refused.returncode == 2
    assert "error: the network does not run on images of 80x48 pixels" in refused.stderr
    assert "calibrat" not in refused.stderr
    warned = subprocess.run(command(*words, "sixteens:Small"), **means)
    assert warned.returncode == 0, warned.stderr
    assert "no bundle can be made of it later: the network does not run on images of 80x48 pixels" in warned.stderr
    assert (tmp_path / "model.pt").exists()
    assert not (tmp_path / "bundle").exists()
    # What an engine is built for by default, 1920x1080, has no such sides.
    exported = subprocess.run(command(*words, "sixteens:Sixteens", "-o", "16.pt", "--export", "bundle"), **means)
    assert exported.returncode == 0, exported.stderr
    assert "it takes images whose sides are multiples of 16, and so will its bundle" in exported.stderr
    engine = read_manifest(tmp_path / "bundle").engine
    assert engine is not None
    assert engine["profile"].endswith(":1x3x1088x1920")


def test_a_killed_fine_tuning_goes_on_with_the_same_command_and_no_other(tmp_path):
    folder = image_folder(tmp_path / "photos", 6, 96, 96)
    arguments = (edsr_weights(tmp_path / "edsr.pth"), "--images", folder, "--bits", "3")
    # Keeps what it has after every step, not only twice a minute.
    eager = "from odm_deploy.tuning import finetuning; finetuning.KEPT_EVERY_S = 0.0; from odm_deploy.cli import main"
    call = [sys.executable, "-c", f"{eager}; main()", *command(*arguments, "--finetune", "0.1")[3:]]
    settings = {"text": True, "env": environment(), "cwd": tmp_path}
    kept = tmp_path / "model.pt.unfinished"
    process = subprocess.Popen(call, stderr=subprocess.PIPE, **settings)
    while not kept.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (tmp_path / "model.pt").exists()

    other = subprocess.run([*call[:-1], "5"], capture_output=True, check=False, **settings)
    assert other.returncode == 2
    assert "model.pt.unfinished holds training of another call" in other.stderr

    again = subprocess.run(call, capture_output=True, check=False, **settings)
    assert again.returncode == 0, again.stderr
    gone_on = re.search(r"going on behind the (\d+) steps? of fine-tuning", again.stderr)
    assert gone_on, again.stderr
    made = re.search(r"fine-tuning, (\d+) steps:", again.stderr)
    assert made, again.stderr
    assert int(made[1]) > int(gone_on[1]) > 0
    assert load_model(tmp_path / "model.pt").layers
    assert not kept.exists()
