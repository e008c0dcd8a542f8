"""What an engine.plan says about itself, and what the bundle around it says, before any TensorRT is loaded.

A plan runs only on the flavour and version of TensorRT that built it, and fails elsewhere with words that help nobody
("Magic tag does not match"). Its first 28 bytes tell both: a tag of four letters ending in "trt", and at byte 24 the
builder's version (NVIDIA/TensorRT#3073). The tag of TensorRT for RTX is "vtrt", and byte 16 holds the plan's size.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odm_deploy.errors import InputError
from odm_deploy.machine.builders import TENSORRT, TENSORRT_RTX, Gpu
from odm_deploy.manifest import manifest_beside

_HEADER = struct.Struct("<4sIQQ4B")
_RTX_TAG = b"vtrt"
_AMPERE = (8, 0)
REBUILD = "build it for this machine with: odm-deploy build BUNDLE"
"""What to do about a plan that cannot run here."""


@dataclass(frozen=True)
class PlanHeader:
    """Who wrote a plan."""

    flavour: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: tuple[int, int, int, int]
    """The builder's version, for example (1, 7, 1, 116)."""

    def __str__(self) -> str:
        return f"{self.flavour} {'.'.join(map(str, self.version))}"

    def require_flavour(self, flavour: str, *, label: str) -> None:
        """Raise InputError unless `flavour` is the one that built this plan."""
        if self.flavour != flavour:
            raise InputError(
                f"{flavour} cannot run {label}",
                why=f"it was built by {self}",
                fix=f"run it with --runtime {self.flavour}, or {REBUILD}",
            )

    def require_version(self, version: str, *, label: str) -> None:
        """Raise InputError unless the installed `version`, such as "10.13.0.35", can load this plan.

        Between patch releases plans may load; TensorRT itself decides about those.
        """
        if version.split(".")[:2] != [str(number) for number in self.version[:2]]:
            raise InputError(f"{self.flavour} {version} cannot run {label}", why=f"it was built by {self}", fix=REBUILD)


def read_plan_header(plan: bytes, *, label: str = "the plan") -> PlanHeader:
    """Read who wrote a serialized engine. `label` names it in error messages.

    Raises:
        InputError: these bytes are not a TensorRT engine, or only the beginning of one.
    """
    if len(plan) < _HEADER.size or plan[1:4] != b"trt":
        raise InputError(
            f"{label} is not a TensorRT engine",
            why=f"its {len(plan)} bytes begin with {plan[:4]!r}",
            fix="build one with: odm-deploy export model.pt -o DIR",
        )
    tag, _, _, size, *version = _HEADER.unpack_from(plan)
    if tag == _RTX_TAG and size > len(plan):
        raise InputError(f"{label} is cut short", why=f"it has {len(plan)} of {size} bytes", fix="copy it again")
    major, minor, patch, build = version
    return PlanHeader(TENSORRT_RTX if tag == _RTX_TAG else TENSORRT, (major, minor, patch, build))


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


def engine_facts(plan_path: Path) -> Mapping[str, Any]:
    """The manifest's entry about the plan it lies beside; empty where there is none."""
    try:
        manifest = manifest_beside(plan_path)
    except InputError:
        # A damaged manifest is no reason not to run a good plan.
        return {}
    return {} if manifest is None or manifest.engine is None else manifest.engine


def built_for(plan_path: Path) -> str:
    """What the manifest beside a plan says it was built with and for; empty where there is no such fact."""
    facts = {str(key): str(value) for key, value in engine_facts(plan_path).items() if value is not None}
    if not facts:
        return ""
    built = f"{facts.get('flavour', 'TensorRT')} {facts.get('version', '')}".strip()
    target = facts.get("gpu") or facts.get("compute_capability") or ""
    return f"built by {built}" + (f" for {target}" if target else "")
