"""A bundle says for which GPUs its plan was built, and plans for others are refused."""

from __future__ import annotations

import pytest

from odm_deploy.errors import InputError
from odm_deploy.machine.gpus import Gpu
from odm_deploy.runtimes.tensorrt.plan_file import built_for, require_gpu

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


def test_a_manifest_tells_where_a_plan_comes_from() -> None:
    assert built_for({}) == ""
    facts = {"flavour": "tensorrt", "version": "10.13.3.9", "gpu": "NVIDIA L4"}
    assert built_for(facts) == "built by tensorrt 10.13.3.9 for NVIDIA L4"
    assert built_for({**facts, "gpu": None}) == "built by tensorrt 10.13.3.9"
