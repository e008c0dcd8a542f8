"""`compiled_quantizers.py`, in a process of its own.

In one that has run a thousand other tests, with OpenVINO, ONNX Runtime and their threads in it, kernels that torch's
compiler makes left parts of their results unwritten. Training refuses such a torch; here it would say nothing of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import REPOSITORY


def test_compiled_quantizers_in_a_process_of_their_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/training/compiled_quantizers.py"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
