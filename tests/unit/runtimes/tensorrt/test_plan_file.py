"""Plans name their builder; what does not is no plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from odm_deploy.building.build import build_engine
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import ShapeProfile
from odm_deploy.machine.builders import Gpu, can_build, find_flavour
from odm_deploy.runtimes.tensorrt.plan_file import PlanHeader, built_for, read_plan_header, require_gpu
from tests.sr_graphs import sr_model

RTX = find_flavour("tensorrt_rtx")


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem)
def test_a_real_plan_names_the_builder_that_made_it(tmp_path: Path) -> None:
    onnx_path, plan_path = tmp_path / "model.onnx", tmp_path / "engine.plan"
    onnx_path.write_bytes(sr_model().SerializeToString())
    build_engine(onnx_path, plan_path, profiles=ShapeProfile.static(1, 16, 16), flavour=RTX)
    plan = plan_path.read_bytes()
    header = read_plan_header(plan)
    assert str(header) == f"tensorrt_rtx {RTX.version}"
    header.require_flavour("tensorrt_rtx", label="it")
    header.require_version(RTX.version, label="it")
    with pytest.raises(InputError, match=r"cut short.*of \d+ bytes"):
        read_plan_header(plan[:-1])


@pytest.mark.parametrize("data", [b"", b"x\n", b"vtrt", b"\x08\x0a" * 100, b"PK\3\4" + bytes(100)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"e\.plan is not a TensorRT engine"):
        read_plan_header(data, label="e.plan")


def test_another_tag_means_the_data_centre_library() -> None:
    data = b"ftrt" + bytes(20) + bytes([10, 13, 3, 9])
    assert read_plan_header(data) == PlanHeader("tensorrt", (10, 13, 3, 9))


def test_another_flavour_or_minor_version_is_refused_and_another_patch_is_not() -> None:
    header = PlanHeader("tensorrt", (10, 13, 3, 9))
    header.require_version("10.13.0.35", label="p")
    with pytest.raises(InputError, match=r"tensorrt 10\.14\.0\.1 cannot run p.*10\.13\.3\.9"):
        header.require_version("10.14.0.1", label="p")
    with pytest.raises(InputError, match="--runtime tensorrt"):
        header.require_flavour("tensorrt_rtx", label="p")


L4, A10, T4 = (Gpu(0, f"NVIDIA {name}", sm, 1) for name, sm in (("L4", (8, 9)), ("A10", (8, 6)), ("T4", (7, 5))))
BUILT_ON_L4 = {"flavour": "tensorrt", "gpu": "NVIDIA L4", "compute_capability": [8, 9]}


@pytest.mark.parametrize(
    ("facts", "fitting", "other"),
    [
        (BUILT_ON_L4, (L4,), (A10, T4)),
        ({**BUILT_ON_L4, "hardware": "same-capability"}, (L4,), (A10, T4)),
        ({**BUILT_ON_L4, "hardware": "ampere+"}, (L4, A10), (T4,)),
        ({"flavour": "tensorrt_rtx", "targets": []}, (L4, A10), (T4,)),
        ({"flavour": "tensorrt_rtx", "targets": ["SM75", "SM86"]}, (A10, T4), (L4,)),
        ({**BUILT_ON_L4, "flavour": "tensorrt_rtx", "targets": ["CURRENT"]}, (L4,), (A10, T4)),
        # Manifests of earlier versions, and plans that lie alone, do not tell.
        ({"flavour": "tensorrt_rtx"}, (L4, A10, T4), ()),
        ({"flavour": "tensorrt"}, (L4, A10, T4), ()),
        ({}, (L4, A10, T4), ()),
    ],
)
def test_plans_for_other_gpus_are_refused_with_both_named(facts, fitting, other) -> None:
    for gpu in fitting:
        require_gpu(facts, gpu, label="p")
    for gpu in other:
        with pytest.raises(
            InputError, match=rf"cannot run p here: it is for .*{gpu.name} \({gpu.sm}\).*odm-deploy build"
        ):
            require_gpu(facts, gpu, label="p")


def test_the_manifest_tells_where_a_plan_comes_from(tmp_path: Path) -> None:
    plan, manifest = tmp_path / "engine.plan", tmp_path / "manifest.json"
    assert built_for(plan) == ""
    manifest.write_text("{ damaged")
    assert built_for(plan) == ""
    document = {
        "format": "odm-deploy bundle",
        "version": 1,
        "network": {"name": "edsr", "scale": 4},
        "checkpoint": {},
        "onnx": {},
        "receptive_radius_px": 9,
        "layers": {},
        "engine": {"flavour": "tensorrt", "version": "10.13.3.9", "gpu": "NVIDIA L4"},
    }
    manifest.write_text(json.dumps(document))
    assert built_for(plan) == "built by tensorrt 10.13.3.9 for NVIDIA L4"
    manifest.write_text(json.dumps({**document, "engine": None}))
    assert built_for(plan) == ""
