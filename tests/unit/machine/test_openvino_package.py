"""Importing OpenVINO tells nobody, and leaves no process behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino_telemetry", reason="OpenVINO's telemetry is not installed")

_OPENED = """
import multiprocessing, sys
import odm_deploy.machine.openvino_package as package
forked = []
multiprocessing.Process.start = lambda process: forked.append(process)
{imported}
assert openvino.Core().available_devices
print("openvino_telemetry" in sys.modules)
"""


@pytest.mark.parametrize(
    ("imported", "found"),
    [("openvino = package.import_openvino()", "False"), ("import openvino; package.import_openvino()", "True")],
    ids=["here", "by_somebody_else"],
)
def test_telemetry_is_not_imported(imported, found):
    # An event of its own is sent from a process of its own: none is started either way, for the test's sake.
    script = _OPENED.format(imported=imported)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [found]


def test_telemetry_can_be_imported_afterwards():
    script = "from odm_deploy.machine.openvino_package import import_openvino as i; i(); import openvino_telemetry"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
