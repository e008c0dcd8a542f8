"""Build a TensorRT engine from an ONNX file, and say afterwards what is in it.

The builder runs in a child process (see `child`): whatever a graph does to it, the caller gets an engine or a
`BuildError` with the builder's own words.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import odm_deploy
from odm_deploy.building.child import HARDWARE_LEVELS, BuildRequest
from odm_deploy.building.layer_table import LayerRecord, parse_inspector, parse_log
from odm_deploy.errors import BuildError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.graphs.files import read_onnx
from odm_deploy.graphs.input_shapes import ShapeProfile
from odm_deploy.lowering.lint import Severity, lint
from odm_deploy.machine.builders import Flavour, choose_builder, find_gpus

_TAIL_LINES = 12
_ADVICES = 2


@dataclass(frozen=True)
class BuildProgress:
    """Where a build stands; phases nest."""

    phase: str
    """The innermost running phase, in the builder's words."""
    step: int
    steps: int
    """Steps done and to do in that phase."""
    depth: int
    """How many phases enclose it; 0 is the whole build."""


@dataclass(frozen=True)
class BuildReport:
    """A finished build."""

    plan: Path
    plan_bytes: int
    seconds: float
    """Parsing and building, without starting the child process."""
    builder: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    profile: ShapeProfile
    layers: tuple[LayerRecord, ...]
    """Layers of the engine; empty when `tensorrt` could not load its own plan to list them."""
    warnings: tuple[str, ...]
    """The builder's warnings, each once, and options that had no effect."""
    log_tail: str
    """The last lines of the builder's log."""
    trtexec_equivalent: str
    """The command that builds the same engine with NVIDIA's own tool."""
    targets: tuple[str, ...] = ()
    """GPUs that were asked for, such as `SM86`; empty for the builder's default."""


def build_engine(
    onnx_path: Path | str,
    plan_path: Path | str,
    *,
    profiles: ShapeProfile,
    flavour: Flavour | str | None = None,
    timeout_s: float = 600,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | str | None = None,
    tf32: bool = True,
    compute_capabilities: Sequence[str] = (),
    version_compatible: bool = False,
    hardware: str = "this",
    on_progress: Callable[[BuildProgress], None] | None = None,
    log_path: Path | str | None = None,
) -> BuildReport:
    """Build `onnx_path` into the engine `plan_path`, which appears only when it is whole.

    Args:
        onnx_path: an ONNX graph whose precision is written in it (casts and QDQ): networks are strongly typed.
        plan_path: where the engine goes.
        profiles: accepted and preferred input shapes.
        flavour: `tensorrt` or `tensorrt_rtx`; None chooses (`compat.choose_builder`).
        timeout_s: the build is stopped after this many seconds.
        workspace_mib: limit of the scratch memory a kernel may use; None for the builder's default.
        optimization_level: 0 (fast build) to 5 (fast engine); None for the builder's default of 3.
        timing_cache: file with kernel timings, read and rewritten; speeds up later builds of `tensorrt`. In a folder,
            the file is named after version and GPU, because timings of another would choose wrong kernels.
        tf32: whether float32 convolutions may round their operands to 11 significant bits. Switch it off where
            exactness is claimed.
        compute_capabilities: what to build for, `SM86` or `8.6` or `current`; TensorRT-RTX only. Empty for its
            default: Ampere and later.
        version_compatible: let later versions of the same major version load the plan, at some cost in speed;
            `tensorrt` only.
        hardware: GPUs that are to run the plan: `this`, `same-capability` or `ampere+` (slower); `tensorrt` only.
        on_progress: called with every step the builder reports, from this thread.
        log_path: keep the builder's complete VERBOSE log here.

    Raises:
        BuildError: the builder refused the graph, crashed, ran out of memory or of time.
        InputError: the file is missing, cut off, or no ONNX.
        MissingError: no builder here.
        UsageError: an option that makes no sense.
    """
    onnx_file, chosen = _check_input(onnx_path), _flavour(flavour)
    targets = _targets(compute_capabilities, chosen)
    _check_compatibility(version_compatible, hardware, chosen)
    if timeout_s <= 0:
        raise UsageError("no such time limit", why=f"{timeout_s} s", fix="give the build some seconds")
    with ExitStack() as stack:
        if log_path is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="odm-deploy-")))
            log = scratch / "build.log"
        else:
            log = Path(log_path)
            log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        plan = stack.enter_context(atomic_path(plan_path))
        request = BuildRequest(
            module=chosen.name,
            onnx=str(onnx_file.resolve()),
            plan=str(plan),
            log=str(log),
            profile=(profiles.min, profiles.opt, profiles.max),
            tf32=tf32,
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            timing_cache=None if timing_cache is None else str(_timing_cache_file(Path(timing_cache), chosen)),
            compute_capabilities=targets,
            version_compatible=version_compatible,
            hardware=hardware,
        )
        done = _run_child(request, timeout_s, on_progress, log)
        plan_bytes = plan.stat().st_size
        with log.open(errors="replace") as lines:
            layers = parse_log(lines)
        tail = _tail(log)
    inspection = done["inspection"]
    if inspection:
        layers = parse_inspector(inspection)
    warnings: list[str] = list(done["warnings"])
    if timing_cache is not None and chosen.is_rtx:
        warnings.append("a timing cache has no effect on TensorRT-RTX")
    return BuildReport(
        plan=Path(plan_path),
        plan_bytes=plan_bytes,
        seconds=done["seconds"],
        builder=chosen.name,
        version=done["version"],
        profile=profiles,
        layers=tuple(layers),
        warnings=tuple(warnings),
        log_tail=tail,
        trtexec_equivalent=_trtexec(request, done, Path(onnx_path), Path(plan_path)),
        targets=targets,
    )


def _check_input(path: Path | str) -> Path:
    onnx_file = Path(path)
    # The parser would refuse these too, but in words that blame the graph.
    read_onnx(onnx_file)
    return onnx_file


def _flavour(flavour: Flavour | str | None) -> Flavour:
    if isinstance(flavour, Flavour):
        return choose_builder(flavour.name)
    return choose_builder(flavour)


def _targets(names: Sequence[str], flavour: Flavour) -> tuple[str, ...]:
    """`8.6`, `86`, `sm86` -> `SM86`."""
    if names and not flavour.is_rtx:
        raise UsageError(
            "cannot choose a compute capability",
            why="tensorrt builds for the GPU of this machine only",
            fix="use tensorrt_rtx, or leave it out",
        )
    plain = [name.upper().replace(".", "") for name in names]
    return tuple(f"SM{name}" if name.isdigit() else name for name in plain)


def _check_compatibility(version_compatible: bool, hardware: str, flavour: Flavour) -> None:
    if hardware not in HARDWARE_LEVELS:
        raise UsageError(f"no such hardware: {hardware}", fix=f"use one of {', '.join(HARDWARE_LEVELS)}")
    if flavour.is_rtx and (version_compatible or hardware != "this"):
        raise UsageError(
            "cannot choose what else runs this plan",
            why="plans of tensorrt_rtx run on every GPU from Ampere on, and on their own version only",
            fix="leave --version-compatible and --hardware out, or use tensorrt",
        )


def _timing_cache_file(path: Path, flavour: Flavour) -> Path:
    """`path` itself, or in a folder the file for this version and this GPU."""
    if not path.is_dir():
        return path
    gpus = find_gpus()
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", gpus[0].name) if gpus else "no-gpu"
    return path / f"{flavour.name}-{flavour.version}-{gpu}.timing"


def _run_child(
    request: BuildRequest, timeout_s: float, on_progress: Callable[[BuildProgress], None] | None, log: Path
) -> dict[str, Any]:
    """Run one build; returns its `done` event.

    Raises:
        BuildError: it ended in any other way.
    """
    # -P and an explicit PYTHONPATH: a json.py in the user's folder must not become part of the builder.
    home = str(Path(odm_deploy.__file__).parents[1])
    path = os.pathsep.join(item for item in (home, os.environ.get("PYTHONPATH", "")) if item)
    command = [sys.executable, "-P", "-m", "odm_deploy.building.child"]
    expired = threading.Event()
    with (
        log.open("a") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        ) as child,
    ):

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(timeout_s, expire)
        # Ctrl-C may come at any of these lines, and no timer is worth waiting for at exit.
        timer.daemon = True
        try:
            timer.start()
            last = _follow(child, request, on_progress)
            code = child.wait()
        finally:
            # Also on Ctrl-C and on an exception from `on_progress`: a build nobody waits for must not go on.
            timer.cancel()
            child.kill()
    if last.get("event") == "done" and code == 0:
        return last
    if expired.is_set():
        fix = "allow more time, lower the optimization level, or narrow the shape profile"
        raise BuildError(f"building {request.onnx} was stopped", why=f"it took longer than {timeout_s:g} s", fix=fix)
    if last.get("event") == "failed":
        raise BuildError(last["what"], why=last["why"], fix=last["fix"] or _advice(request))
    raise BuildError(f"the {request.module} builder {_cause(code)}", why=_last_words(log), fix=_advice(request))


def _follow(
    child: subprocess.Popen[str], request: BuildRequest, on_progress: Callable[[BuildProgress], None] | None
) -> dict[str, Any]:
    """Send the request, forward progress until the child closes its output, and return the last event."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(request.to_json())
        child.stdin.close()
    except BrokenPipeError:
        return {}
    last: dict[str, Any] = {}
    phases: list[tuple[str, int]] = []
    for line in child.stdout:
        try:
            last = json.loads(line)
        except ValueError:
            # A killed child can leave half a line.
            return {}
        event, name = last["event"], last.get("name", "")
        if event == "phase":
            phases.append((name, last["steps"]))
            step = 0
        elif event == "step":
            step = last["step"] + 1
        else:
            phases = [phase for phase in phases if phase[0] != name]
            continue
        depth = next((depth for depth, phase in enumerate(phases) if phase[0] == name), None)
        if on_progress is not None and depth is not None:
            on_progress(BuildProgress(name, step, phases[depth][1], depth))
    return last


def _cause(code: int) -> str:
    """What an exit code without a final event means."""
    if code >= 0:
        return f"ended without an answer (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "was killed, most likely because the machine ran out of memory"
    return f"crashed ({name})"


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return "its last words: " + " | ".join(lines[-3:]) if lines else "it left no log"


def _advice(request: BuildRequest) -> str:
    """What lint says about a graph that did not build: the builder's own words rarely name the cause."""
    errors = [finding for finding in lint(request.onnx) if finding.severity is Severity.ERROR]
    named = [f"{finding.node}: {finding.message} [{finding.rule}]; {finding.fix}" for finding in errors[:_ADVICES]]
    more = f" ... and {len(errors) - _ADVICES} more" if len(errors) > _ADVICES else ""
    return " | ".join(named) + more if named else "lint knows no reason; the builder's log has the details (log_path)"


def _tail(log: Path) -> str:
    """The last lines of a log, read from its end: VERBOSE logs grow to many megabytes."""
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 16384))
        text = stream.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _trtexec(request: BuildRequest, done: dict[str, Any], onnx_path: Path, plan_path: Path) -> str:
    """The same build as a command line of NVIDIA's tool, for bug reports and for machines without Python.

    Where graph and plan lie in one folder it is meant to be run there: bundles move between machines.
    """
    if onnx_path.parent == plan_path.parent:
        onnx_path, plan_path = Path(onnx_path.name), Path(plan_path.name)
    rtx = request.module == "tensorrt_rtx"
    profile = ShapeProfile(*request.profile)  # pyright: ignore[reportArgumentType]
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}"]
    dynamic = [pair for pair in zip(done["inputs"], done["input_dims"], strict=True) if min(pair[1]) < 0]
    for index, option in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = [f"{name}:{'x'.join(map(str, profile.for_input(dims)[index]))}" for name, dims in dynamic]
        if shapes:
            words.append(f"--{option}={','.join(shapes)}")
    if not rtx and done["version"].startswith("10."):
        # TensorRT 11 and RTX know no other mode.
        words.append("--stronglyTyped")
    words.append("--profilingVerbosity=detailed")
    if not request.tf32:
        words.append("--noTF32")
    if request.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{request.workspace_mib}")
    if request.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={request.optimization_level}")
    if request.timing_cache and not rtx:
        words.append(f"--timingCacheFile={request.timing_cache}")
    if request.version_compatible:
        words.append("--versionCompatible")
    if request.hardware != "this":
        level = "ampere+" if request.hardware == "ampere+" else "sameComputeCapability"
        words.append(f"--hardwareCompatibilityLevel={level}")
    if request.compute_capabilities == ("CURRENT",):
        words.append("--useGpu")
    elif request.compute_capabilities:
        words.append(f"--computeCapabilities={','.join(name[2:] for name in request.compute_capabilities)}")
    words.append("--skipInference")
    return shlex.join(words)
