"""What the bundle around an engine.plan says about it: for which GPUs it was built, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odm_deploy.bundle.plan_header import REBUILD
from odm_deploy.errors import InputError
from odm_deploy.machine.builders import TENSORRT_RTX
from odm_deploy.machine.gpus import Gpu

_AMPERE = (8, 0)


def require_gpu(facts: Mapping[str, Any], gpu: Gpu, *, label: str) -> None:
    """Raise InputError where a manifest's entry about a plan says that it was built for other GPUs than `gpu`.

    TensorRT would refuse it too, in words that name neither GPU.
    """
    builders = tuple(facts.get("compute_capability") or gpu.compute_capability)
    fits = gpu.compute_capability == builders
    wanted = f"the {facts.get('gpu')} that it was built on"
    if facts.get("flavour") == TENSORRT_RTX:
        targets = facts.get("targets")
        if targets is None:
            return
        if not targets:
            fits, wanted = gpu.compute_capability >= _AMPERE, "Ampere and later"
        elif "CURRENT" not in targets:
            fits, wanted = gpu.sm in targets, " and ".join(targets)
    elif facts.get("hardware") == "ampere+":
        fits, wanted = gpu.compute_capability >= _AMPERE, "Ampere and later"
    if not fits:
        why = f"it is for {wanted}, and this machine has a {gpu.name} ({gpu.sm})"
        raise InputError(f"{facts.get('flavour')} cannot run {label} here", why=why, fix=REBUILD)


def built_for(facts: Mapping[str, Any]) -> str:
    """What a manifest's entry about a plan says that it was built with and for; empty where there is no such fact."""
    known = {key: str(value) for key, value in facts.items() if value is not None}
    if not known:
        return ""
    built = f"{known.get('flavour', 'TensorRT')} {known.get('version', '')}".strip()
    target = known.get("gpu") or known.get("compute_capability") or ""
    return f"built by {built}" + (f" for {target}" if target else "")
