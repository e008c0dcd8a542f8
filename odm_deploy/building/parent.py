"""The parent of the process in which a builder runs: starts it, follows its progress, and explains how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import odm_deploy
from odm_deploy.building.options import BuildRequest
from odm_deploy.errors import BuildError
from odm_deploy.graphs.files import read_onnx
from odm_deploy.graphs.sides import divisor_of_graph
from odm_deploy.lowering.lint import Severity, lint

_ADVICES = 2
_SIZES_DO_NOT_FIT = ("reshape changes volume", "must be conformable", "violate shape constraints")
"""What TensorRT says of tensors that somebody's code cuts, or adds, as if all images had the sizes it wants."""


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


def run_child(request: BuildRequest, on_progress: Callable[[BuildProgress], None] | None = None) -> dict[str, Any]:
    """Run one build in a process of its own; returns its `done` event.

    Raises:
        BuildError: it ended in any other way.
    """
    # -P and an explicit PYTHONPATH: a json.py in the user's folder must not become part of the builder.
    home = str(Path(odm_deploy.__file__).parents[1])
    path = os.pathsep.join(item for item in (home, os.environ.get("PYTHONPATH", "")) if item)
    command = [sys.executable, "-P", "-m", "odm_deploy.building.child"]
    timeout_s, log = request.options.timeout_s, Path(request.log)
    expired = threading.Event()
    environment, pipe = {**os.environ, "PYTHONPATH": path}, subprocess.PIPE
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment) as child,
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
        fix = "allow more time, lower the optimization level, or narrow the input shapes"
        raise BuildError(f"building {request.onnx} was stopped", why=f"it took longer than {timeout_s:g} s", fix=fix)
    if last.get("event") == "failed":
        raise BuildError(last["what"], why=last["why"], fix=last["fix"] or _advice(request, last["why"]))
    raise BuildError(f"the {request.builder} builder {_cause(code)}", why=_last_words(log), fix=_advice(request))


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
    """The end of a log, read from its end: VERBOSE logs grow to many megabytes."""
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 16384))
        text = stream.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "its last words: " + " | ".join(lines[-3:]) if lines else "it left no log"


def _advice(request: BuildRequest, why: str = "") -> str:
    """What lint says about a graph that did not build, or which sizes of images it takes.

    The builder's own words, `why`, rarely name the cause.
    """
    graph, _ = read_onnx(Path(request.onnx))
    errors = [finding for finding in lint(graph) if finding.severity is Severity.ERROR]
    named = [f"{finding.node}: {finding.message} [{finding.rule}]; {finding.fix}" for finding in errors[:_ADVICES]]
    more = f" ... and {len(errors) - _ADVICES} more" if len(errors) > _ADVICES else ""
    if named:
        return " | ".join(named) + more
    if any(words in why for words in _SIZES_DO_NOT_FIT) and (divisor := divisor_of_graph(graph)) > 1:
        fitting = str(request.options.shapes.enlarged(divisor)).split(":")
        shapes = ":".join(fitting if len(set(fitting)) > 1 else fitting[:1])
        return f"it runs on images whose sides are multiples of {divisor}: --shapes {shapes}"
    return "lint knows no reason; the builder's log has the details (log_path)"
