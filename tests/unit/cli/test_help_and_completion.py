"""What `--help` shows first, and what the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.command_line import run_cli


def test_examples_of_the_command_itself_stand_on_lines_of_their_own():
    lines = run_cli("--help").stdout.splitlines()
    assert "  $ odm-deploy upscale photo.png large.png --model bundle" in lines
    assert not any("\\b" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ("upscale", "", "file"),
        ("quantize model.pt --images", "pho", "file"),
        ("upscale a.png b.png --runtime", "onnx", "onnxruntime_cuda"),
        ("inspect bundle --runtime", "on", "onnxruntime"),
        ("quantize w.pth --profile", "int", "integer"),
        ("quantize w.pth --profile", "", "fastest"),
        ("quantize w.pth --profile", "exact", "exact-integer"),
        ("quantize w.pth --network", "", "spandrel"),
    ],
)
def test_the_shell_completes_files_and_names(words, begun, expected):
    typed = f"odm-deploy {words} {begun}"
    environment = {
        **os.environ,
        "_ODM_DEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words.split()) + 1),
    }
    code = "import sys; sys.argv = ['odm-deploy']; from odm_deploy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert expected in done.stdout.replace(",", "\n").splitlines()
