"""What this machine has and what that allows, found out without importing anything heavy. `doctor` shows it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from odm_deploy.errors import MissingError
from odm_deploy.installing import install_extra, install_spandrel
from odm_deploy.machine.builders import Builder, choose_builder, find_builders
from odm_deploy.machine.capabilities import why_unfit
from odm_deploy.machine.gpus import Gpu, find_gpus
from odm_deploy.machine.host import adds_in_16_bits, cpu_features, cpu_name, physical_cpus
from odm_deploy.runtimes.registry import why_unusable

# Distributions that put an `onnxruntime` module in the same place; the last one installed wins, half broken.
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_PACKAGES = (
    *("torch", "onnx", "onnxscript", "onnx-ir", "openvino", "polygraphy", "cuda-python", "numpy", "Pillow"),
    *("av", "einops", "jinja2", "spandrel", "starlette", "torchvision", "uvicorn"),
)
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Ability:
    """Something `odm-deploy` can do where its needs are met."""

    name: str
    """The verb, and on what."""
    works: bool
    with_what: str = ""
    """What it would use here."""
    problem: str = ""
    """What is missing."""
    fix: str = ""
    """The command that brings it."""


@dataclass(frozen=True)
class Environment:
    """One machine's report."""

    python: str
    system: str
    packages: dict[str, str | None]
    """Distribution -> version; None where it is not installed."""
    cpu: dict[str, Any]
    """name, physical cores this process may use, instruction sets that matter."""
    gpus: list[dict[str, Any]]
    """name, compute capability (such as SM86) and memory of every NVIDIA GPU the driver can use, and which TensorRTs,
    installed or not, run on it."""
    driver: str | None
    """Version of the NVIDIA driver; None where there is none, or the system does not tell."""
    abilities: list[Ability]
    warnings: list[str]
    """What will go wrong, or slower than need be."""

    def to_dict(self) -> dict[str, Any]:
        """The document `doctor --json` prints."""
        return asdict(self)


def look_around() -> Environment:
    """Examine this machine. Never raises for what is missing: that is its result."""
    gpus = find_gpus()
    return Environment(
        python=platform.python_version(),
        system=platform.platform(),
        packages=_packages(),
        cpu={"name": cpu_name(), "physical_cores": physical_cpus(), "features": list(cpu_features())},
        gpus=[
            {
                "name": gpu.name,
                "compute_capability": gpu.sm,
                "memory_mib": gpu.memory_mib,
                "runs_engines_of": [builder.name for builder in find_builders() if not _unfit(builder, gpu)],
            }
            for gpu in gpus
        ],
        driver=_driver_version(),
        abilities=_abilities(),
        warnings=_warnings(),
    )


def conflicting_onnxruntimes(installed: Sequence[str]) -> str:
    """One warning when several ONNX Runtime distributions overwrite each other; empty otherwise."""
    clashing = [name for name in _ONNXRUNTIMES if name in installed]
    if len(clashing) < 2:
        return ""
    return (
        f"{' and '.join(clashing)} are installed side by side and overwrite each other's files: "
        f"pip uninstall -y {' '.join(clashing)}, then install one of them"
    )


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {name: _version(name) for name in _PACKAGES}
    versions["onnxruntime"] = _version("onnxruntime")
    for name in _ONNXRUNTIMES[1:]:
        if _version(name):
            versions[name] = _version(name)
    for builder in find_builders():
        versions[builder.name] = builder.version or None
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    try:
        found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _DRIVER_VERSION.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return found.group(1) if found else None


def _abilities() -> list[Ability]:
    export = _needs("export to ONNX", ["torch", "onnxscript", "onnx_ir"], install_extra("export"))
    runtimes = [runtime for runtime in ("openvino", "onnxruntime") if not why_unusable(runtime)]
    cpu = _ability("run and bench on the CPU", with_what=", ".join(runtimes))
    if not runtimes:
        problem, fix = "neither openvino nor onnxruntime is installed", install_extra("cpu")
        cpu = _ability(cpu.name, problem=problem, fix=fix)
    verify = _ability("verify against the reference", with_what=f"torch; {cpu.with_what}")
    for need in (cpu, export):
        if not need.works:
            verify = replace(need, name=verify.name)
    quantize = _needs("quantize", ["torch", "threadpoolctl", "PIL"], install_extra("export"))
    foreign = _needs("quantize what spandrel knows", ["spandrel", "einops"], install_spandrel())
    if not quantize.works:
        foreign = replace(quantize, name=foreign.name)
    return [
        quantize,
        foreign,
        export,
        _build(),
        cpu,
        _run_gpu(),
        verify,
        _needs("upscale video files", ["av"], install_extra("video")),
        _needs("write reports", ["torch", "jinja2"], install_extra("report")),
        _needs("upscale over HTTP", ["starlette", "uvicorn"], install_extra("serve")),
        _needs("train (from a clone)", ["torch", "PIL"], install_extra("train")),
    ]


def _ability(name: str, *, with_what: str = "", problem: str = "", fix: str = "") -> Ability:
    return Ability(name, not problem, with_what, problem, fix)


def _needs(name: str, modules: Sequence[str], fix: str) -> Ability:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return _ability(name, problem=f"{', '.join(missing)} not installed", fix=fix)
    return _ability(name, with_what=", ".join(modules))


def _build() -> Ability:
    name = "build engines"
    try:
        builder = choose_builder()
    except MissingError as error:
        return _ability(name, problem=error.why, fix=error.fix)
    return _ability(name, with_what=f"{builder.name} {builder.version}")


def _run_gpu() -> Ability:
    name = "run and bench on the GPU"
    if not find_gpus():
        return _ability(name, problem="no NVIDIA GPU that the driver can use")
    # Engines run on the first GPU.
    unfit = [_unfit(builder, find_gpus()[0]) for builder in find_builders()]
    fitting = [builder for builder, why in zip(find_builders(), unfit, strict=True) if not why]
    usable = [builder for builder in fitting if builder.usable]
    if not usable:
        problem = "; ".join(filter(None, (*(builder.problem for builder in fitting[:1]), *unfit)))
        return _ability(name, problem=problem, fix=fitting[0].install if fitting else "")
    if _version("cuda-python") is None and _version("cuda-bindings") is None:
        return _ability(name, problem="cuda-python not installed", fix="pip install 'cuda-python>=12.6'")
    return _ability(name, with_what=", ".join(f"{builder.name} {builder.version}" for builder in usable))


def _unfit(builder: Builder, gpu: Gpu) -> str:
    return why_unfit(gpu, rtx=builder.is_rtx)


def _warnings() -> list[str]:
    installed = [name for name in _ONNXRUNTIMES if _version(name)]
    # Installed, and yet not usable: the surprise worth a warning.
    stubs = [builder for builder in find_builders() if builder.version and not builder.usable]
    found = [conflicting_onnxruntimes(installed), *(f"{stub.problem}: {stub.install}" for stub in stubs)]
    for builder, gpu in product(find_builders(), find_gpus()):
        if builder.usable and (why := _unfit(builder, gpu)):
            found.append(f"{builder.name} {builder.version} builds here, for other GPUs: {why}")
    if adds_in_16_bits():
        found.append(
            "this CPU has no VNNI instructions: where weights and their inputs have 8 bits, sums of products would "
            "saturate, and OpenVINO and ONNX Runtime take slower ways here; models of quantize --any-cpu need none"
        )
    return [warning for warning in found if warning]
