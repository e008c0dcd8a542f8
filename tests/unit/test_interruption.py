"""Ctrl-C in the first second of a command: in real processes, which have to end with one word."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from odm_deploy.bundle import Bundle
from tests.conftest import REPOSITORY

INTERRUPTED_MODULE = """
import signal, time
signal.raise_signal(signal.SIGINT)
time.sleep(0.1)
print("imported whole", flush=True)
"""
IMPORTS_IT = "from odm_deploy.interruption import told_of_interruption as told\nwith told():\n    import slow\n    "
LATER = "import time; time.sleep(30)"


def as_in_a_terminal():
    """Shells let what they start in the background ignore Ctrl-C, and the tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=as_in_a_terminal,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slow.py").write_text(INTERRUPTED_MODULE)
    (tmp_path / "outer.py").write_text("import slow\nprint('outer, too', flush=True)\n")
    return tmp_path


def test_an_import_is_finished_first(folder):
    done = python(f"{IMPORTS_IT.replace('slow', 'outer')}{LATER}", folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "imported whole\nouter, too\n", "interrupted\n")


FINALIZERS = {
    "__del__": """
class Thing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        print("gone whole", flush=True)
thing = Thing()
""",
    "a weak key": """
import weakref
class Thing:
    def __hash__(self):
        return 1
    def __eq__(self, other):
        return self is other
class Data(dict):
    def __delitem__(self, key):
        signal.raise_signal(signal.SIGINT)
        super().__delitem__(key)
        print("gone whole", flush=True)
thing = Thing()
known = weakref.WeakKeyDictionary()
known.data = Data()
known[thing] = 1
""",
}


@pytest.mark.parametrize("finalizer", FINALIZERS.values(), ids=FINALIZERS)
def test_one_that_comes_while_an_object_goes_away_is_not_lost(finalizer, tmp_path):
    told = "import signal, time\nfrom odm_deploy.interruption import told_of_interruption as told\n"
    done = python(f"{told}{finalizer}with told():\n    del thing\n    time.sleep(30)", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "gone whole\n", "interrupted\n")


def test_the_check_can_fail(folder):
    done = python("import slow", folder)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" in done.stderr


def test_one_that_waited_until_the_end_does_not_kill(folder):
    # Within the import, or a slow machine would end the wait first.
    finishing = "from odm_deploy.interruption import let_go\nlet_go()\ntime.sleep(0.2)\n"
    (folder / "late.py").write_text(INTERRUPTED_MODULE + finishing)
    done = python(f"{IMPORTS_IT.replace('slow', 'late')}pass", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported whole\n", "")


def test_whoever_ignores_it_goes_on(folder):
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = python(f"{ignoring}{IMPORTS_IT}print('done')", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported whole\ndone\n", "")


@pytest.mark.parametrize("start", [["-m", "odm_deploy"], ["-c", "from odm_deploy.cli import main; main()"]])
def test_a_command_ends_in_a_line_whenever_it_is_interrupted(start, tmp_path):
    ends = set()
    # Of the very first moments nothing is ours: Python has no handler yet. How long they are, the machine's load says.
    started = time.monotonic()
    python("import odm_deploy.cli", tmp_path)
    first_s = time.monotonic() - started
    for delay_s in (0.05, 0.1, 0.15, 0.25, 0.35, 0.55, 0.85, 1.15):
        words = ["export", str(REPOSITORY / "tools/demo/edsr_baseline_x4_w4a4.pt"), "-o", "bundle", "--no-engine"]
        running = subprocess.Popen(
            [sys.executable, *start, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_in_a_terminal,
        )
        time.sleep(first_s + delay_s)
        running.send_signal(signal.SIGINT)
        errors = running.communicate(timeout=120)[1]
        ends.add(running.returncode)
        assert "Traceback" not in errors
        for written in tmp_path.iterdir():
            # It may have been whole just before.
            assert written.name == "bundle"
            Bundle.open(written)
        if running.returncode == 130:
            assert errors.splitlines()[-1] == "interrupted"
    assert 130 in ends
    assert ends <= {130, 0, -signal.SIGINT}
