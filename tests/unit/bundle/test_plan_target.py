"""Plans say for which GPUs they were built; elsewhere they are refused, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.bundle.plan_target import built_for, require_gpu, where_it_runs
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.machine.capabilities import RTX_CAPABILITIES, sm_names
from odm_deploy.machine.gpus import Gpu
from tests.simulated_gpu import H100
from tests.sr_graphs import sr_model

RTX = find_builder("tensorrt_rtx")
L4, A10, T4 = (Gpu(0, f"NVIDIA {name}", sm, 1) for name, sm in (("L4", (8, 9)), ("A10", (8, 6)), ("T4", (7, 5))))
BUILT_ON_L4 = {"gpu": "NVIDIA L4", "compute_capability": [8, 9]}
TRT_PLAN = PlanHeader("tensorrt", (10, 13, 3, 9))
RTX_PLAN = PlanHeader("tensorrt_rtx", (1, 7, 1, 116), ("SM80", "SM86", "SM89"))
OLD_RTX_PLAN = PlanHeader("tensorrt_rtx", (1, 5, 0, 114))


@pytest.mark.parametrize(
    ("plan", "facts", "fitting", "other"),
    [
        (TRT_PLAN, BUILT_ON_L4, (L4,), (A10, T4, H100)),
        (TRT_PLAN, {**BUILT_ON_L4, "hardware": "same-capability"}, (L4,), (A10, T4)),
        (TRT_PLAN, {**BUILT_ON_L4, "hardware": "ampere+"}, (L4, A10, H100), (T4,)),
        (TRT_PLAN, {}, (L4, A10, T4, H100), ()),
        (RTX_PLAN, {}, (L4, A10), (T4, H100)),
        # The plan knows better than a manifest that somebody copied beside it.
        (RTX_PLAN, {"targets": ["SM75"]}, (L4, A10), (T4, H100)),
        (OLD_RTX_PLAN, {"targets": []}, (L4, A10), (T4, H100)),
        (OLD_RTX_PLAN, {"targets": ["SM75", "SM86"]}, (A10, T4), (L4, H100)),
        (OLD_RTX_PLAN, {**BUILT_ON_L4, "targets": ["CURRENT"]}, (L4,), (A10, T4, H100)),
        # Manifests of earlier versions, and plans that lie alone, do not tell; what none of them runs on is known.
        (OLD_RTX_PLAN, {}, (L4, A10, T4), (H100,)),
    ],
)
def test_plans_for_other_gpus_are_refused_with_both_named(plan, facts, fitting, other) -> None:
    for gpu in fitting:
        require_gpu(plan, facts, (gpu, H100), label="p")
        assert f"it runs on {gpu}" in where_it_runs(plan, facts, (gpu,))
    for gpu in other:
        with pytest.raises(InputError, match=rf"run p here: it is for .*{gpu.name} \({gpu.sm}\).*odm-deploy build"):
            require_gpu(plan, facts, (gpu,), label="p")
        assert f"NOT run on {gpu}" in where_it_runs(plan, facts, (gpu,))
    require_gpu(plan, facts, (), label="p")


@pytest.mark.parametrize(
    ("plan", "gpu", "fix"),
    [
        (RTX_PLAN, H100, "odm-deploy build BUNDLE --builder tensorrt"),
        (RTX_PLAN, T4, "odm-deploy build BUNDLE --builder tensorrt_rtx --compute-capability SM75"),
        (TRT_PLAN, A10, "odm-deploy build BUNDLE"),
    ],
)
def test_what_to_do_depends_on_the_gpu(plan, gpu, fix) -> None:
    with pytest.raises(InputError) as caught:
        require_gpu(plan, BUILT_ON_L4, (gpu,), label="p")
    assert caught.value.fix.endswith(fix)


def test_a_gpu_that_fits_but_is_not_the_first_is_named() -> None:
    second = Gpu(1, "NVIDIA L4", (8, 9), 1, "GPU-0f")
    with pytest.raises(InputError, match=r"make GPU 1, NVIDIA L4 .*CUDA_VISIBLE_DEVICES=GPU-0f, or build it"):
        require_gpu(RTX_PLAN, {}, (H100, second), label="p")
    line = where_it_runs(RTX_PLAN, {}, (H100, second))
    assert "here it runs on GPU 1, NVIDIA L4 (SM89); it does NOT run on GPU 0, NVIDIA H100 (SM90)" in line
    assert where_it_runs(RTX_PLAN, {}, ()) == "the plan is for SM80, SM86, SM89"


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem)
def test_real_plans_name_the_gpus_they_were_built_for(tmp_path: Path) -> None:
    onnx_path, plan_path = tmp_path / "model.onnx", tmp_path / "engine.plan"
    onnx_path.write_bytes(sr_model().SerializeToString())
    known = sm_names(RTX_CAPABILITIES)
    for asked in ((), *((name,) for name in known), ("SM86", "SM120")):
        options = BuildOptions(builder=RTX.name, shapes=InputShapes.static(1, 16, 16), compute_capabilities=asked)
        build_engine(onnx_path, plan_path, options)
        assert PlanHeader.of_file(plan_path).targets == (asked or known[1:])


def test_a_manifest_tells_where_a_plan_comes_from() -> None:
    assert built_for({}) == ""
    facts = {"flavour": "tensorrt", "version": "10.13.3.9", "gpu": "NVIDIA L4"}
    assert built_for(facts) == "built by tensorrt 10.13.3.9 for NVIDIA L4"
    assert built_for({**facts, "gpu": None}) == "built by tensorrt 10.13.3.9"
