"""Engines on a machine that cannot run them: every reason in one line. With a GPU see tests/gpu."""

from __future__ import annotations

import pytest

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.machine.builders import find_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine
from odm_deploy.runtimes.tensorrt.listeners import make_log
from odm_deploy.runtimes.tensorrt.rtx_engine import TensorRtRtxEngine

RTX_PLAN = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])

without_gpu = pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")


@without_gpu
@pytest.mark.skipif(not find_builder("tensorrt_rtx").usable, reason="tensorrt_rtx is not installed")
def test_without_a_gpu_the_cpu_is_recommended() -> None:
    with pytest.raises(MissingError, match=r"no NVIDIA GPU.*--runtime openvino"):
        TensorRtRtxEngine.open_bytes(RTX_PLAN)


@pytest.mark.skipif(find_builder("tensorrt").usable, reason="tensorrt is installed")
def test_a_missing_gpu_or_library_comes_with_what_to_do() -> None:
    with pytest.raises(MissingError, match=r"pip install|with --runtime openvino"):
        TensorRtEngine.open_bytes(b"ftrt" + bytes(20) + bytes([10, 13, 3, 9]))


def test_foreign_plans_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="--runtime tensorrt_rtx"):
        TensorRtEngine.open_bytes(RTX_PLAN)
    with pytest.raises(InputError, match="not a TensorRT engine"):
        TensorRtRtxEngine.open_bytes(b"garbage" * 10)


@pytest.mark.parametrize("options", [RuntimeOptions(optimize=False), RuntimeOptions(precision="bf16")])
def test_an_engine_cannot_change_how_it_computes(options: RuntimeOptions) -> None:
    with pytest.raises(UsageError, match="build another"):
        TensorRtRtxEngine.open_bytes(RTX_PLAN, options)


@pytest.mark.skipif(not find_builder("tensorrt_rtx").usable, reason="tensorrt_rtx is not installed")
def test_the_log_keeps_what_tensorrt_says_about_a_broken_plan() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    log = make_log(trt)
    assert trt.Runtime(log).deserialize_cuda_engine(b"nonsense" * 64) is None
    assert log.last_error != "TensorRT gave no reason"
