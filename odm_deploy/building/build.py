"""Build a TensorRT engine from an ONNX file, and say afterwards what is in it.

The builder runs in a child process (see `child`): whatever a graph does to it, the caller gets an engine or a
`BuildError` with the builder's own words.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from odm_deploy.building.layer_table import LayerRecord, parse_inspector, parse_log
from odm_deploy.building.options import BuildOptions, BuildRequest
from odm_deploy.building.parent import BuildProgress, run_child
from odm_deploy.building.trtexec import trtexec_command
from odm_deploy.bundle.manifest import ONNX_FILE, PLAN_FILE
from odm_deploy.files import atomic_path
from odm_deploy.graphs.files import read_onnx
from odm_deploy.lowering.metadata import is_marked_exact
from odm_deploy.machine.builders import Builder, choose_builder
from odm_deploy.machine.gpus import find_gpus


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
    options: BuildOptions
    """What it was built with: as asked for, with the builder that was chosen, and without what has no effect there."""
    layers: tuple[LayerRecord, ...]
    """Layers of the engine; empty when `tensorrt` could not load its own plan to list them."""
    warnings: tuple[str, ...]
    """The builder's warnings, each once and on one line, and options that had no effect."""
    trtexec_equivalent: str
    """The command that builds the same engine with NVIDIA's own tool."""


def build_engine(
    onnx_path: Path | str,
    plan_path: Path | str,
    options: BuildOptions | None = None,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
    log_path: Path | str | None = None,
) -> BuildReport:
    """Build `onnx_path` into the engine `plan_path`, which appears only when it is whole.

    Args:
        onnx_path: an ONNX graph whose precision is written in it (casts and QDQ): networks are strongly typed.
        plan_path: where the engine goes.
        options: how to build it.
        on_progress: called with every step the builder reports, from this thread.
        log_path: keep the builder's complete VERBOSE log here.

    Raises:
        BuildError: the builder refused the graph, crashed, ran out of memory or of time.
        InputError: the file is missing, cut off, or no ONNX.
        MissingError: no builder here.
        UsageError: an option that the builder does not have.
    """
    onnx_file = Path(onnx_path)
    # The parser would refuse a broken file too, but in words that blame the graph.
    graph, _ = read_onnx(onnx_file)
    options = options or BuildOptions()
    builder = choose_builder(options.builder)
    options, warnings = _resolve(options, builder, exact=is_marked_exact(graph))
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as scratch, atomic_path(plan_path) as plan:
        log = Path(log_path or Path(scratch) / "build.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        done = run_child(BuildRequest(str(onnx_file.resolve()), str(plan), str(log), options), on_progress)
        plan_bytes = plan.stat().st_size
        with log.open(errors="replace") as lines:
            layers = parse_log(lines)
    if done["inspection"]:
        layers = parse_inspector(done["inspection"])
    return BuildReport(
        plan=Path(plan_path),
        plan_bytes=plan_bytes,
        seconds=done["seconds"],
        builder=builder.name,
        version=done["version"],
        options=options,
        layers=tuple(layers),
        warnings=tuple(dict.fromkeys(" ".join(warning.split()) for warning in (*done["warnings"], *warnings))),
        trtexec_equivalent=trtexec_command(
            onnx_file, Path(plan_path), options, version=done["version"], inputs=done["inputs"]
        ),
    )


def build_plan(graph: ModelProto, options: BuildOptions) -> bytes:
    """Build a graph in memory; returns the plan and leaves no file. Raises as `build_engine`."""
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        onnx_path, plan_path = Path(folder) / ONNX_FILE, Path(folder) / PLAN_FILE
        onnx_path.write_bytes(graph.SerializeToString())
        build_engine(onnx_path, plan_path, options)
        return plan_path.read_bytes()


def _resolve(options: BuildOptions, builder: Builder, *, exact: bool) -> tuple[BuildOptions, list[str]]:
    """The options for one builder and one graph, and what to say about those without effect."""
    warnings: list[str] = []
    cache = options.timing_cache
    if cache is not None and builder.is_rtx:
        # It compiles when engines are loaded, and times nothing.
        warnings.append("a timing cache has no effect on TensorRT-RTX")
        cache = None
    elif cache is not None and cache.is_dir():
        # A file for this version and this GPU.
        gpu = next((re.sub(r"[^A-Za-z0-9]+", "-", found.name) for found in find_gpus()), "no-gpu")
        cache /= f"{builder.name}-{builder.version}-{gpu}.timing"
    # TF32 keeps 11 significant bits of what an engine falls back to float for: too few for sums that never round.
    return replace(options, builder=builder.name, timing_cache=cache, tf32=options.tf32 and not exact), warnings
