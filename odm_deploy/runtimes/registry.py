"""Which runtimes there are, which of them work on this machine, and which is the best for a model."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from odm_deploy.bundle import Bundle
from odm_deploy.errors import InputError, MissingError, OdmError, UsageError
from odm_deploy.machine.builders import BUILDERS, find_builder
from odm_deploy.machine.capabilities import why_unfit
from odm_deploy.machine.gpus import find_gpus, require_any_gpu
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.options import RuntimeOptions

# name -> (module, class). The module is imported on demand: each brings its own heavy package.
_HOMES = {
    "tensorrt": ("odm_deploy.runtimes.tensorrt.engine", "TensorRtEngine"),
    "tensorrt_rtx": ("odm_deploy.runtimes.tensorrt.rtx_engine", "TensorRtRtxEngine"),
    "openvino": ("odm_deploy.runtimes.onnx.openvino_cpu", "OpenVinoCpu"),
    "onnxruntime": ("odm_deploy.runtimes.onnx.onnx_runtime", "OnnxRuntime"),
    "onnxruntime_cuda": ("odm_deploy.runtimes.onnx.onnx_runtime", "OnnxRuntimeCuda"),
    "onnxruntime_tensorrt": ("odm_deploy.runtimes.onnx.onnx_runtime", "OnnxRuntimeTensorRt"),
    "onnxruntime_rtx": ("odm_deploy.runtimes.onnx.onnx_runtime", "OnnxRuntimeRtx"),
}
_CPU_ONLY = ("openvino", "onnxruntime")

RUNTIME_NAMES = tuple(_HOMES)

FASTEST_FIRST = ("tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")
"""The order in which `bench`, `upscale` and `Engine` look for a runtime that works."""

FAITHFUL_FIRST = ("tensorrt", "tensorrt_rtx", "onnxruntime", "openvino")
"""The order for proofs of parity: where there is no GPU, ONNX Runtime stays closest to the reference."""


def runtime_class(name: str) -> type[Runtime]:
    """The class behind a runtime's name; `-` and `_` are the same.

    Raises:
        UsageError: there is no such runtime.
    """
    module, attribute = _HOMES[_canonical(name)]
    found: type[Runtime] = getattr(importlib.import_module(module), attribute)
    return found


def why_unusable(name: str) -> str:
    """Why the runtime cannot work on this machine, in one clause; empty when nothing speaks against it.

    Looks at what is installed without importing it.

    Raises:
        UsageError: there is no such runtime.
    """
    canonical = _canonical(name)
    package = canonical.partition("_")[0]
    if canonical in BUILDERS:
        problem = find_builder(canonical).problem
    else:
        problem = "" if importlib.util.find_spec(package) else f"{package} is not installed"
    if problem or canonical in _CPU_ONLY:
        return problem
    if not find_gpus():
        return "no NVIDIA GPU that the driver can use"
    # Engines run on the first one.
    return why_unfit(find_gpus()[0], rtx=canonical.endswith("rtx")) if "tensorrt" in canonical else ""


def open_runtime(
    model: Bundle | Path | str,
    name: str | None = None,
    options: RuntimeOptions | None = None,
    *,
    order: Sequence[str] = FASTEST_FIRST,
) -> Runtime:
    """Open a bundle, model.onnx or engine.plan on a runtime.

    Args:
        model: a bundle or a model file, opened already or not.
        name: the runtime to use; None takes the first of `order` that works for this model on this machine.
        options: how to run it.
        order: names, best first.

    Raises:
        InputError: the model is missing or unusable, or is not of the kind the named runtime takes.
        MissingError: what the named runtime needs (or every runtime that could) is not on this machine.
        UsageError: there is no such runtime, or it cannot honour an option.
    """
    bundle = Bundle.open(model)
    if name is None:
        return _open_first(bundle, options, order)
    chosen = runtime_class(name)
    if bundle.kind not in (None, chosen.model_kind):
        wants = "an engine.plan" if chosen.model_kind == "plan" else "a model.onnx"
        raise InputError(f"{chosen.name} cannot run {bundle}", why=f"it takes {wants} or a bundle that holds one")
    if chosen.on_gpu:
        # Before what the bundle lacks: no engine would run here.
        require_any_gpu(f"{chosen.name} cannot run here")
    return chosen.open(bundle, options)


def _open_first(bundle: Bundle, options: RuntimeOptions | None, order: Sequence[str]) -> Runtime:
    failures: list[OdmError] = []
    builder = _builder_of_plan(bundle, failures)
    kinds = {bundle.kind} if bundle.kind else {"onnx"} if builder is None else {"onnx", "plan"}
    for name in order:
        candidate = runtime_class(name)
        # Only what built a plan can run it, and the plan says which one that is.
        if candidate.model_kind not in kinds or (candidate.model_kind == "plan" and name != builder):
            continue
        try:
            opened = candidate.open(bundle, options)
        except OdmError as error:
            failures.append(error)
            continue
        # Nobody expects an engine to run where there is no GPU.
        told = (error for error in failures if find_gpus() or not isinstance(error, MissingError))
        opened.passed_over = tuple(map(str, told))
        return opened
    if not failures:
        raise InputError(f"cannot run {bundle}", why=f"none of {', '.join(order)} takes such a file")
    # A refusal of the model tells more than the absence of a runtime: it came from one that is here.
    raise next((error for error in failures if not isinstance(error, MissingError)), failures[0])


def _builder_of_plan(bundle: Bundle, failures: list[OdmError]) -> str | None:
    """Which builder built the bundle's plan; None, with a failure noted, where that cannot be told.

    Raises:
        InputError: a plan file that is none.
    """
    if bundle.plan_path is None:
        return None
    try:
        return bundle.plan_header.builder
    except InputError as error:
        if bundle.kind == "plan":
            raise
        failures.append(error)
        return None


def _canonical(name: str) -> str:
    canonical = name.lower().replace("-", "_")
    if canonical not in _HOMES:
        raise UsageError(f"--runtime {name}", why="there is no such runtime", fix=f"use {', '.join(RUNTIME_NAMES)}")
    return canonical
