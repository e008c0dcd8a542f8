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

HARMLESS = {
    "activation scale by 1 ulp",
    "weight scales by 1 ulp",
    # Before a grid that begins at zero, a ReLU has nothing to do.
    "an activation function missing",
    # An exact network reads whole grey levels.
    "mean shift of one colour before, by 0.1 grey levels",
}
"""Faults that may change no value of the 8-bit image: then verify may say yes."""


@functools.cache
def sound(profile: str) -> judging.Sound:
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    bundle = subjects.Subject("edsr", profile, "4", "uint8").write(folder)
    return judging.judge_sound(bundle, folder / "images", "onnxruntime", inspecting=False)


@pytest.mark.parametrize("profile", ["ordinary", "exact"])
@pytest.mark.parametrize("fault", faults.all_faults())
def test_no_fault_that_changes_the_picture_passes(fault, profile):
    verdict = judging.judge(faults.FAULTS[fault], sound(profile))
    if verdict is None:
        pytest.skip("this network has no such place")
    assert not verdict.escaped, verdict
    assert verdict.verify or (fault in HARMLESS and not verdict.changed), verdict
