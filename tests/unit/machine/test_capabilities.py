"""Which TensorRT runs on which GPU, as every part of the package says it, on machines with simulated GPUs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from odm_deploy.cli.doctor import command
from odm_deploy.doctor import look_around
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.machine.capabilities import RTX_CAPABILITIES, sm_names
from odm_deploy.runtimes.registry import why_unusable
from tests.simulated_gpu import H100, RTX2080, RTX4090, machine_with

RTX = find_builder("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


@needs_rtx
def test_the_installed_library_knows_the_gpus_we_say_it_does() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    named = set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT"}
    assert named == set(sm_names(RTX_CAPABILITIES))


@needs_rtx
def test_doctor_says_what_runs_where() -> None:
    with machine_with(H100, RTX4090):
        found, text = look_around(), CliRunner().invoke(command).stdout
    assert [gpu["runs_engines_of"] for gpu in found.gpus] == [["tensorrt"], ["tensorrt", "tensorrt_rtx"]]
    assert "NVIDIA H100, SM90, 24000 MiB; runs engines of tensorrt\n" in text
    abilities = {ability.name: ability for ability in found.abilities}
    on_gpu = abilities["run and bench on the GPU"]
    if not find_builder("tensorrt").usable:
        assert "TensorRT for RTX does not run on GPU 0, NVIDIA H100 (SM90)" in on_gpu.problem
        assert "pypi.nvidia.com" in on_gpu.fix
    (warning,) = (warning for warning in found.warnings if "for other GPUs" in warning)
    assert f"tensorrt_rtx {RTX.version} builds here" in warning


@needs_rtx
def test_a_runtime_is_unusable_where_the_first_gpu_is_not_one_of_its() -> None:
    for gpus, why in (((H100, RTX4090), "does not run on GPU 0, NVIDIA H100"), ((RTX4090, H100), ""), ((RTX2080,), "")):
        with machine_with(*gpus):
            assert why in why_unusable("tensorrt_rtx")
            assert bool(why) == bool(why_unusable("tensorrt_rtx"))
