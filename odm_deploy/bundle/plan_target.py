"""For which GPUs a plan was built, by its own header and by the manifest around it, and what to do on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odm_deploy.bundle.plan_header import REBUILD, PlanHeader
from odm_deploy.errors import InputError
from odm_deploy.machine.builders import TENSORRT, TENSORRT_RTX
from odm_deploy.machine.capabilities import RTX_DEFAULT, runs_rtx, sm_names
from odm_deploy.machine.gpus import Gpu

_AMPERE = (8, 0)


def require_gpu(plan: PlanHeader, facts: Mapping[str, Any], gpus: Sequence[Gpu], *, label: str) -> None:
    """Raise InputError where a plan was built for other GPUs than the first of `gpus`, which engines run on.

    TensorRT would refuse it too, in words that name neither GPU.

    Args:
        plan: the plan's header.
        facts: the manifest's entry about the plan; empty for a plan that lies alone.
        gpus: those of this machine.
        label: names the plan in the message.
    """
    if not gpus or _fits(plan, facts, gpus[0]):
        return
    fitting = next((gpu for gpu in gpus if _fits(plan, facts, gpu)), None)
    fix = rebuild_for(plan, gpus[0])
    if fitting is not None:
        fix = f"make {fitting} the first one with CUDA_VISIBLE_DEVICES={fitting.uuid or fitting.index}, or {fix}"
    why = f"it is for {_wanted(plan, facts)}, and engines run on {gpus[0]} here"
    raise InputError(f"{plan.builder} cannot run {label} here", why=why, fix=fix)


def where_it_runs(plan: PlanHeader, facts: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    """One line about a plan just built: which of this machine's GPUs it runs on, and what to do about the others."""
    fitting = [str(gpu) for gpu in gpus if _fits(plan, facts, gpu)]
    others = [gpu for gpu in gpus if not _fits(plan, facts, gpu)]
    line = f"the plan is for {_wanted(plan, facts)}"
    if fitting:
        line += f"; here it runs on {' and '.join(fitting)}"
    if others:
        line += f"; it does NOT run on {' and '.join(map(str, others))}: {rebuild_for(plan, others[0])}"
    return line


def rebuild_for(plan: PlanHeader, gpu: Gpu) -> str:
    """What to do where a plan does not run on `gpu`."""
    if plan.builder == TENSORRT:
        return REBUILD
    if not runs_rtx(gpu):
        return f"{REBUILD} --builder {TENSORRT}"
    return f"{REBUILD} --builder {TENSORRT_RTX} --compute-capability {gpu.sm}"


def built_for(facts: Mapping[str, Any]) -> str:
    """What a manifest's entry about a plan says that it was built with and for; empty where there is no such fact."""
    known = {key: str(value) for key, value in facts.items() if value is not None}
    if not known:
        return ""
    built = f"{known.get('flavour', 'TensorRT')} {known.get('version', '')}".strip()
    target = known.get("gpu") or known.get("compute_capability") or ""
    return f"built by {built}" + (f" for {target}" if target else "")


def _fits(plan: PlanHeader, facts: Mapping[str, Any], gpu: Gpu) -> bool:
    if plan.builder == TENSORRT_RTX:
        targets = _rtx_targets(plan, facts)
        return runs_rtx(gpu) if targets is None else gpu.sm in targets
    if facts.get("hardware") == "ampere+":
        return gpu.compute_capability >= _AMPERE
    return gpu.compute_capability == tuple(facts.get("compute_capability") or gpu.compute_capability)


def _wanted(plan: PlanHeader, facts: Mapping[str, Any]) -> str:
    if plan.builder == TENSORRT_RTX:
        return ", ".join(_rtx_targets(plan, facts) or ("GPUs that TensorRT for RTX knows",))
    if facts.get("hardware") == "ampere+":
        return "Ampere and later"
    return f"the {facts.get('gpu') or 'GPU'} that it was built on"


def _rtx_targets(plan: PlanHeader, facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """GPUs that a plan of TensorRT for RTX is for, such as SM86: by its header, else by its manifest; None: unknown."""
    named = facts.get("targets")
    if plan.targets is not None or named is None:
        return plan.targets
    if "CURRENT" in named:
        major, minor = facts.get("compute_capability") or (0, 0)
        return sm_names(((major, minor),)) if major else None
    return tuple(named) or sm_names(RTX_DEFAULT)
