"""The rules of `tests/gpu`, on tests that do what a GPU may do to a process."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

RULES = Path(__file__).parents[1] / "gpu" / "conftest.py"
MAKEFILE = Path(__file__).parents[2] / "Makefile"
TESTS = """
import os, signal, sys, types, warnings

warnings.warn("at import", DeprecationWarning)

def test_warns():
    warnings.warn("in a test", DeprecationWarning)

def test_crashes():
    os.kill(os.getpid(), signal.SIGSEGV)

def test_kills_the_context():
    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=fail)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def test_meets_a_live_context():
    assert "torch" not in sys.modules

def test_too():
    assert "torch" not in sys.modules
"""


def test_warnings_crashes_and_dead_contexts_end_no_other_test(tmp_path):
    folder = tmp_path / "gpu"
    folder.mkdir()
    shutil.copy(RULES, folder)
    (folder / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings =\n    error\n")
    options = re.search(r"pytest -q -m gpu (.*) tests/gpu", MAKEFILE.read_text())[1].replace("-n 4", "-n 1").split()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options, "gpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    for name in ("test_warns", "test_meets_a_live_context", "test_too"):
        assert f"PASSED gpu/test_it.py::{name}" in done.stdout, done.stdout
    for name in ("test_crashes", "test_kills_the_context"):
        assert f"crashed while running 'gpu/test_it.py::{name}'" in done.stdout, done.stdout
