"""Plans name their builder; what does not is no plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.machine.builders import can_build, find_builder
from tests.sr_graphs import sr_model

RTX = find_builder("tensorrt_rtx")


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem)
def test_a_real_plan_names_the_builder_that_made_it(tmp_path: Path) -> None:
    onnx_path, plan_path = tmp_path / "model.onnx", tmp_path / "engine.plan"
    onnx_path.write_bytes(sr_model().SerializeToString())
    build_engine(onnx_path, plan_path, BuildOptions(builder=RTX.name, shapes=InputShapes.static(1, 16, 16)))
    plan = plan_path.read_bytes()
    header = PlanHeader.of_bytes(plan)
    assert str(header) == f"tensorrt_rtx {RTX.version}"
    header.require_builder("tensorrt_rtx", label="it")
    header.require_version(RTX.version, label="it")
    assert PlanHeader.of_file(plan_path) == header
    plan_path.write_bytes(plan[:-1])
    for cut_short in (lambda: PlanHeader.of_bytes(plan[:-1]), lambda: PlanHeader.of_file(plan_path)):
        with pytest.raises(InputError, match=r"cut short.*of \d+ bytes"):
            cut_short()


@pytest.mark.parametrize("data", [b"", b"x\n", b"vtrt", b"\x08\x0a" * 100, b"PK\3\4" + bytes(100)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"e\.plan is not a TensorRT engine"):
        PlanHeader.of_bytes(data, label="e.plan")


def test_another_tag_means_the_data_centre_library() -> None:
    data = b"ftrt" + bytes(20) + bytes([10, 13, 3, 9])
    assert PlanHeader.of_bytes(data) == PlanHeader("tensorrt", (10, 13, 3, 9))


def test_another_builder_or_minor_version_is_refused_and_another_patch_is_not() -> None:
    header = PlanHeader("tensorrt", (10, 13, 3, 9))
    header.require_version("10.13.0.35", label="p")
    with pytest.raises(InputError, match=r"tensorrt 10\.14\.0\.1 cannot run p.*10\.13\.3\.9"):
        header.require_version("10.14.0.1", label="p")
    with pytest.raises(InputError, match="--runtime tensorrt"):
        header.require_builder("tensorrt_rtx", label="p")
