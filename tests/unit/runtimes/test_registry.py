"""Names, order of preference, and which error wins when nothing can run a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import (
    FAITHFUL_FIRST,
    FASTEST_FIRST,
    RUNTIME_NAMES,
    open_runtime,
    runtime_class,
    why_unusable,
)
from tests.sr_graphs import sr_model

RTX_PLAN = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])
ONE_THREAD = RuntimeOptions(threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(sr_model().SerializeToString())
    return path


def test_every_name_leads_to_the_class_of_that_name() -> None:
    assert {name: runtime_class(name).name for name in RUNTIME_NAMES} == {name: name for name in RUNTIME_NAMES}
    assert runtime_class("TensorRT-RTX") is runtime_class("tensorrt_rtx")
    assert set(FASTEST_FIRST) == set(FAITHFUL_FIRST) <= set(RUNTIME_NAMES)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="tensorrt, tensorrt_rtx, openvino"):
        runtime_class("tensorflow")


def test_both_cpu_runtimes_are_usable_here() -> None:
    assert why_unusable("openvino") == why_unusable("onnxruntime") == ""


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_gpu_runtimes_say_what_they_lack() -> None:
    for name in ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda"):
        assert why_unusable(name)


def test_the_order_decides_which_runtime_opens(model: Path) -> None:
    for order, expected in ((FASTEST_FIRST, "openvino"), (FAITHFUL_FIRST, "onnxruntime")):
        with open_runtime(model, options=ONE_THREAD, order=order) as runtime:
            assert runtime.name == expected


def test_a_bundle_whose_plan_is_damaged_runs_its_onnx_and_says_why(model: Path) -> None:
    (model.parent / "engine.plan").write_bytes(b"not a plan at all")
    with open_runtime(model.parent, options=ONE_THREAD) as runtime:
        assert runtime.name == "openvino"
        assert len(runtime.passed_over) == 1
        assert "not a TensorRT engine" in runtime.passed_over[0]


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
@pytest.mark.parametrize("plan", [None, RTX_PLAN])
def test_without_a_gpu_nobody_is_told_that_engines_do_not_run(model: Path, plan: bytes | None) -> None:
    if plan is not None:
        (model.parent / "engine.plan").write_bytes(plan)
    with open_runtime(model.parent, options=ONE_THREAD) as runtime:
        assert runtime.name == "openvino"
        assert runtime.passed_over == ()


def test_an_option_only_one_runtime_honours_chooses_it(model: Path) -> None:
    with open_runtime(model, options=RuntimeOptions(threads=1, optimize=False)) as runtime:
        assert runtime.name == "onnxruntime"


def test_a_file_of_the_wrong_kind_is_refused_by_name(model: Path) -> None:
    with pytest.raises(InputError, match=r"engine\.plan"):
        open_runtime(model, "tensorrt")
    plan = model.with_name("engine.plan")
    plan.write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.onnx"):
        open_runtime(plan, "openvino")


@pytest.mark.parametrize("name", ["missing.onnx", "missing.plan", "missing"])
def test_what_is_not_there_is_said_to_be_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_runtime(tmp_path / name)


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        open_runtime(tmp_path)


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_a_plan_asks_for_its_own_builder(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(RTX_PLAN)
    with pytest.raises(MissingError, match="tensorrt_rtx"):
        open_runtime(plan)


def test_an_order_without_a_taker_says_so(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(RTX_PLAN)
    with pytest.raises(InputError, match="none of openvino takes"):
        open_runtime(plan, order=("openvino",))
