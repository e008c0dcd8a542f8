"""The mutation check of the proof, its quick part: one small network, ONNX Runtime, every fault of the list.

`make mutate` plants them into every network, profile and runtime.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from tests.tool_modules import load_tool

load_tool("toolbox")
from mutations import faults, judging, subjects  # noqa: E402


@functools.cache
def sound(profile: str) -> judging.Sound:
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    bundle = subjects.Subject("edsr", profile, "4", "uint8").write(folder)
    return judging.judge_sound(bundle, folder / "images", "onnxruntime", inspecting=False)


@pytest.mark.parametrize("profile", ["ordinary", "exact"])
@pytest.mark.parametrize("fault", faults.all_faults())
def test_no_fault_passes(fault, profile):
    verdict = judging.judge(faults.FAULTS[fault], sound(profile))
    if verdict is None:
        pytest.skip("this network has no such place")
    assert verdict.verify, verdict
    # What a runtime computes shows every fault that changes more values than ties do: engines have nothing else.
    assert verdict.computed or verdict.changed <= verdict.explained, verdict
