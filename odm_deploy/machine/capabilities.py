"""Which GPUs each TensorRT runs on, by compute capability.

TensorRT for RTX knows fewer GPUs than CUDA: those of its enumeration `ComputeCapability`, here of version 1.7. Hopper
and the Blackwells of data centres are none of them, and its plans do not load there.
"""

from __future__ import annotations

from odm_deploy.machine.gpus import Gpu

TENSORRT_SINCE = (7, 5)
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""In the order in which a plan of TensorRT for RTX counts them (`bundle/plan_header.py`)."""
RTX_DEFAULT = RTX_CAPABILITIES[1:]
"""What its plans are for unless others are asked for: all but Turing."""


def sm_names(capabilities: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """Compute capabilities as compilers spell them: (8, 6) is `SM86`."""
    return tuple(f"SM{major}{minor}" for major, minor in capabilities)


def runs_rtx(gpu: Gpu) -> bool:
    """Whether TensorRT for RTX runs on `gpu`, with a plan that is for it."""
    return gpu.compute_capability in RTX_CAPABILITIES


def why_unfit(gpu: Gpu, *, rtx: bool) -> str:
    """Why no engine of TensorRT (`rtx`: for RTX) runs on `gpu`, in one clause; empty where engines can."""
    if rtx and not runs_rtx(gpu):
        return f"TensorRT for RTX does not run on {gpu}, only on {', '.join(sm_names(RTX_CAPABILITIES))}"
    if not rtx and gpu.compute_capability < TENSORRT_SINCE:
        return f"TensorRT does not run on {gpu}, only from SM75 on"
    return ""
