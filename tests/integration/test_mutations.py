"""The mutation check of the proof, its quick part: one small network, ONNX Runtime, every fault of the list.

`make mutate` plants them into every network, profile and runtime.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import onnx
import pytest

from odm_deploy.bundle import Bundle
from odm_deploy.lowering.lower import LoweringOptions, lower_each
from odm_deploy.proof.reference import reference_of
from tests.tool_modules import load_tool

load_tool("toolbox")
from mutations import faults, judging, subjects  # noqa: E402


@functools.cache
def sound(profile: str) -> judging.Sound:
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    bundle = subjects.Subject("edsr", profile, "4", "uint8").write(folder)
    return judging.judge_sound(bundle, folder / "images", "onnxruntime", inspecting=False)


@functools.cache
def lowered_again(profile: str, ways: tuple[LoweringOptions, ...]) -> list[onnx.ModelProto]:
    model = reference_of(Bundle.open(sound(profile).bundle))
    return lower_each(model, ways)


@pytest.mark.parametrize("profile", ["ordinary", "exact"])
@pytest.mark.parametrize("fault", faults.all_faults())
def test_no_fault_passes(fault, profile, monkeypatch):
    # No fault is in the model.pt: what it lowers to is the same for all, of which verify would lower it for each.
    judged = sound(profile)
    monkeypatch.setattr(
        "odm_deploy.proof.lowered_again.lower_each",
        lambda _, ways, **_more: copy.deepcopy(lowered_again(profile, tuple(ways))),
    )
    verdict = judging.judge(faults.FAULTS[fault], judged)
    if verdict is None:
        pytest.skip("this network has no such place")
    assert verdict.verify, verdict
    # What a runtime computes shows every fault that changes more values than ties do: engines have nothing else.
    assert verdict.computed or verdict.changed <= verdict.explained, verdict
