"""Baselines: the float twin on the same runtime, and as a half-precision engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from odm_deploy.bench.benchmark import benchmark
from odm_deploy.bench.timing import Effort
from odm_deploy.bench.twin import half_precision_plan, open_twin
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.lowering.half_precision import convert_rest_to_half
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.options import RuntimeOptions
from tests.sr_graphs import random_images, sr_model

RTX = find_builder("tensorrt_rtx")
SHAPE = (1, 3, 16, 16)


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVinoCpu])
def test_the_twin_runs_where_the_model_runs_with_the_same_options(kind: type[Runtime], tmp_path: Path) -> None:
    path, options, images = tmp_path / "model.onnx", RuntimeOptions(threads=1), random_images()
    path.write_bytes(sr_model().SerializeToString())
    with kind.open(path, options) as model:
        twin, label = open_twin(path, model, SHAPE, options)
        with twin:
            assert label == "float twin (fp32)"
            assert twin.describe() == model.describe()
            with kind.open_bytes(sr_model("float").SerializeToString(), options) as expected:
                np.testing.assert_allclose(twin.upscale(images), expected.upscale(images), atol=1e-2, rtol=1e-4)


def test_where_there_is_no_twin_the_reason_is_given(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sr_model("float").SerializeToString())
    with OnnxRuntime.open(path) as model, pytest.raises(InputError, match="quantizes nothing"):
        open_twin(path, model, SHAPE)
    report = benchmark(path, "onnxruntime", size=(16, 16), effort=Effort(iterations=2))
    assert report.baseline is None
    assert "quantizes nothing" in report.baseline_note


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_twin_of_an_engine_is_an_engine_in_half_precision(precision: str) -> None:
    model = onnx.shape_inference.infer_shapes(sr_model())
    if precision == "fp16":
        graph = ir.from_proto(model)
        convert_rest_to_half(graph)
        model = ir.to_proto(graph)
    plan = half_precision_plan(float_twin(model), "tensorrt_rtx", InputShapes.static(1, 16, 16))
    assert PlanHeader.of_bytes(plan).builder == "tensorrt_rtx"
