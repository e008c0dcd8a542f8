"""What this machine can build and run engines with: the two builders, as far as they are installed.

TensorRT exists twice, with nearly the same Python module:

* `tensorrt` (the data-centre library). Its package on PyPI is a stub; the libraries come from NVIDIA's own index, so
  an installed `tensorrt` proves nothing until its libraries are there too. It builds only where there is a GPU.
* `tensorrt_rtx` (TensorRT for RTX). Installs whole from PyPI and builds without a GPU; running needs one.

Only package metadata, file names and the CUDA driver are looked at; nothing heavy is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from odm_deploy.errors import MissingError, UsageError
from odm_deploy.installing import install_extra
from odm_deploy.machine.gpus import driver_cuda_major, find_gpus

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt_rtx"
BUILDERS = (TENSORRT, TENSORRT_RTX)

# Versions the one build path of building/child.py was written for: [oldest, newest + 1).
_WINDOWS: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    TENSORRT: ((10, 13), (12, 0)),
    TENSORRT_RTX: ((1, 5), None),
}


@dataclass(frozen=True)
class Builder:
    """What builds engines, and runs those it built: one of the two TensorRTs, as installed here."""

    name: str
    """`tensorrt` or `tensorrt_rtx`; also the name of its Python module."""
    version: str
    """Installed version, for example `1.7.1.116`; empty when it is not installed."""
    problem: str = ""
    """Why it cannot be used here; empty when it can."""

    @property
    def usable(self) -> bool:
        """Whether the module and its libraries are here in a version this package supports."""
        return not self.problem

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.name == TENSORRT_RTX

    @property
    def install(self) -> str:
        """The command that installs it on this platform."""
        return pip_command(self.name, driver_cuda_major())


def pip_command(builder: str, cuda_major: int | None) -> str:
    """The command that installs a builder next to a driver for this CUDA version (None: unknown)."""
    if builder == TENSORRT_RTX:
        return install_extra("rtx")
    extra = "gpu" if cuda_major is None else f"gpu-cu{min(max(cuda_major, 12), 13)}"
    return f"{install_extra(extra)} --extra-index-url https://pypi.nvidia.com"


def builder_name(name: str) -> str:
    """`name` as it is written here; users may write `tensorrt-rtx`.

    Raises:
        UsageError: there is no such builder.
    """
    module = name.replace("-", "_")
    if module not in BUILDERS:
        raise UsageError("no such builder", why=name, fix=f"use one of {', '.join(BUILDERS)}")
    return module


def find_builder(name: str) -> Builder:
    """Look up one builder by name without importing it. Raises as `builder_name`."""
    module = builder_name(name)
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Builder(module, "", f"{module} is not installed")
    version = _version(module)
    if not _has_libraries(module, Path(spec.origin).parent):
        return Builder(module, version, f"{module} {version} is installed without its libraries (a stub package)")
    oldest, newest = _WINDOWS[module]
    found = _version_pair(version)
    if found < oldest or (newest is not None and found >= newest):
        window = f">={oldest[0]}.{oldest[1]}" + (f",<{newest[0]}" if newest else "")
        return Builder(module, version, f"{module} {version} is outside the supported versions {window}")
    return Builder(module, version)


def find_builders() -> tuple[Builder, ...]:
    """Both builders, installed or not, `tensorrt` first."""
    return tuple(find_builder(name) for name in BUILDERS)


def can_build(builder: Builder) -> bool:
    """Whether `builder` can build an engine on this machine: `tensorrt` times kernels and so needs a GPU."""
    return builder.usable and (builder.is_rtx or bool(find_gpus()))


def choose_builder(prefer: str | None = None) -> Builder:
    """The builder of engines here.

    Args:
        prefer: take this one or fail. None: `tensorrt` where it and a GPU are, else `tensorrt_rtx`.

    Raises:
        MissingError: none can be used here; the message holds the command that installs one.
        UsageError: `prefer` names no builder.
    """
    candidates = (find_builder(prefer),) if prefer else find_builders()
    for builder in candidates:
        if can_build(builder):
            return builder
    reasons = [builder.problem or f"{builder.name} needs an NVIDIA GPU to build" for builder in candidates]
    raise MissingError("no TensorRT to build with", why="; ".join(reasons), fix=_advice(candidates))


def _advice(candidates: tuple[Builder, ...]) -> str:
    """The one command to run for `candidates` none of which can build."""
    if sys.platform == "darwin":
        return "build on Linux or Windows: TensorRT does not exist for macOS"
    if len(candidates) == 1:
        only = candidates[0]
        if only.usable:
            return "build on a machine with an NVIDIA GPU, or use tensorrt_rtx, which builds without one"
        return only.install if only.is_rtx or find_gpus() else f"{only.install} on a machine with an NVIDIA GPU"
    # Without a GPU only RTX can build; with one, the data-centre library is the better of the two.
    return pip_command(TENSORRT if find_gpus() else TENSORRT_RTX, driver_cuda_major())


def _version(module: str) -> str:
    # The meta package of an Ubuntu or tar installation has another name than its module, hence the list.
    names = ("", "_cu13", "_cu12", "_bindings", "_cu13_bindings", "_cu12_bindings")
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(module + name)
    return "0"


def _version_pair(version: str) -> tuple[int, int]:
    digits = [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")]
    major, minor, *_ = [*digits, 0, 0]
    return major, minor


def _has_libraries(module: str, package: Path) -> bool:
    """Whether the core library of `module` lies in its wheel, in its libs wheel, or on the loader's path."""
    stem = TENSORRT_RTX if module == TENSORRT_RTX else "nvinfer"
    folders = [package, package.parent / f"{module}_libs"]
    variable = "PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH"
    folders += [Path(item) for item in os.environ.get(variable, "").split(os.pathsep) if item]
    folders += [Path("/usr/lib") / f"{platform.machine()}-linux-gnu", Path("/usr/local/lib"), Path("/usr/lib64")]
    patterns = (f"lib{stem}.so*", f"{stem}*.dll")
    return any(next(folder.glob(pattern), None) for folder in folders if folder.is_dir() for pattern in patterns)
