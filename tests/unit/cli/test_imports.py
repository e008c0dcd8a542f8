"""The seconds in which a command imports PyTorch, in real processes with a module as slow as that."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

IMPORTS_IT = """
from odm_deploy.cli import imports
from odm_deploy.interruption import wait_for_imports
imports.TOLD_AFTER_S = {after_s}
wait_for_imports()
with imports.slow_imports():
    import slow
"""


def importing(folder, module, after_s=600.0):
    (folder / "slow.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_IT.format(after_s=after_s)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # Shells let what they start in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.returncode, done.stdout + done.stderr


def test_ctrl_c_does_not_wait_for_their_end(tmp_path):
    module = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(30)\nprint('imported')"
    assert importing(tmp_path, module) == (130, "interrupted\n")


@pytest.mark.parametrize(("after_s", "told"), [(0.05, "loading PyTorch\n"), (600.0, "")])
def test_those_that_take_long_are_told(after_s, told, tmp_path):
    assert importing(tmp_path, "import time\ntime.sleep(1)", after_s) == (0, told)
