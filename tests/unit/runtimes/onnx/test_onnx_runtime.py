"""What only ONNX Runtime does: the unfused graph, and the providers of GPUs."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from odm_deploy.errors import MissingError
from odm_deploy.installing import install_extra
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime, OnnxRuntimeCuda, OnnxRuntimeRtx, OnnxRuntimeTensorRt
from odm_deploy.runtimes.options import RuntimeOptions
from tests.factories import lowered, tiny_model
from tests.sr_graphs import random_images, sr_model


def test_without_optimization_no_integer_kernel_replaces_qdq() -> None:
    model, images = sr_model("unsigned"), random_images()
    with OnnxRuntime.open_bytes(model.SerializeToString(), RuntimeOptions(threads=1, optimize=False)) as runtime:
        result = runtime.upscale(images)
        assert runtime.describe()["optimized"] is False
    (expected,) = ReferenceEvaluator(model).run(None, {"image": images})
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("kind", [OnnxRuntimeCuda, OnnxRuntimeTensorRt, OnnxRuntimeRtx], ids=lambda kind: kind.name)
def test_a_missing_provider_is_named_with_the_command_that_brings_it(kind: type[OnnxRuntime]) -> None:
    if kind.provider in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has the {kind.provider}")
    with pytest.raises(MissingError, match=rf"{kind.provider}.*{re.escape(install_extra('gpu'))}"):
        kind.open_bytes(sr_model().SerializeToString())


@pytest.mark.parametrize(
    ("precision", "switches"),
    [
        ("fp32", {"trt_int8_enable"}),
        ("fp16", {"trt_int8_enable", "trt_fp16_enable"}),
        ("bf16", {"trt_int8_enable", "trt_bf16_enable"}),
    ],
)
def test_tensorrt_is_allowed_the_types_of_the_graph_and_no_others(precision: str, switches: set[str]) -> None:
    graph = lowered(tiny_model(), precision=precision)
    assert OnnxRuntimeTensorRt._provider_options(graph) == dict.fromkeys(switches, "1")
    assert OnnxRuntimeTensorRt._provider_options(sr_model("float")) == {}
    assert OnnxRuntimeRtx._provider_options(graph) == {}
    assert OnnxRuntimeCuda._provider_options(graph) == {"use_tf32": "0"}
