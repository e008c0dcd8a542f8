"""The engine of a bundle: built when the bundle is exported, and again on every machine that is to run it otherwise.

A plan runs on the builder, the version and mostly the GPU it was built for, `model.onnx` runs everywhere. Building
needs no torch and no checkpoint: a bundle carries all it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odm_deploy.building.build import BuildReport, build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.building.parent import BuildProgress
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import ONNX_FILE, PLAN_FILE, Manifest
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.bundle.plan_target import where_it_runs
from odm_deploy.errors import InputError, MissingError
from odm_deploy.graphs.input_shapes import InputShapes, parse_shapes
from odm_deploy.machine.builders import choose_builder
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.progress import Say

_WARNINGS_SAID = 5
_WARNINGS_KEPT = 50


def build_bundle_engine(
    onnx_path: Path,
    plan_path: Path,
    options: BuildOptions,
    say: Say,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport | None:
    """Build the engine next to a bundle's ONNX file; None where no builder is named, and none can build here.

    `say` takes lines of progress, the builder's warnings, or the reason for None. Raises as `build_engine`;
    MissingError only where a builder was asked for by name.
    """
    try:
        builder = choose_builder(options.builder)
    except MissingError as error:
        if options.builder is not None:
            raise
        say(f"no {PLAN_FILE}: {error}")
        return None
    say(f"building the engine with {builder.name} {builder.version}")
    built = build_engine(onnx_path, plan_path, options, on_progress=on_progress)
    say_warnings(built, say)
    say(where_it_runs(PlanHeader.of_file(plan_path), describe_engine(built), find_gpus()))
    say(f"the same with NVIDIA's own tool: {built.trtexec_equivalent}")
    return built


def say_warnings(built: BuildReport, say: Say) -> None:
    """Pass on what the builder warned about, a line each, and no more than a few."""
    for warning in built.warnings[:_WARNINGS_SAID]:
        say(f"{built.builder} warns: {warning}")
    if len(built.warnings) > _WARNINGS_SAID:
        say(f"and {len(built.warnings) - _WARNINGS_SAID} more warnings")


def rebuild_engine(
    bundle: Bundle | Path | str,
    options: BuildOptions,
    say: Say,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Manifest:
    """Build, or build anew, the engine of an existing bundle on this machine, and write down in its manifest how.

    A build that fails leaves plan and manifest as they were. Returns the manifest as it is now.

    Raises:
        InputError: no bundle, a damaged one, one whose model.onnx is another than its manifest says, or one that cannot
            be written to.
        BuildError: the builder refused, crashed or ran out of time.
        MissingError: no builder can build here.
    """
    opened = Bundle.open(bundle)
    manifest, folder, onnx_path = opened.require_manifest(), opened.folder, opened.onnx_path
    if folder is None or onnx_path is None:
        raise InputError(f"cannot build the engine of {bundle}", why=f"it holds no {ONNX_FILE}")
    if opened.is_changed:
        # The manifest speaks for the engine, too: proofs and grids of one graph say nothing about another.
        raise InputError(
            f"cannot build the engine of {bundle}",
            why=f"its {ONNX_FILE} is not the one its manifest describes",
            fix="copy the whole bundle again, or export it again",
        )
    # Here, unlike for an export, no engine is no answer.
    options = dataclasses.replace(options, builder=choose_builder(options.builder).name)
    built = build_bundle_engine(onnx_path, folder / PLAN_FILE, options, say, on_progress)
    assert built is not None
    rebuilt = dataclasses.replace(manifest, engine=describe_engine(built))
    rebuilt.write(folder)
    return rebuilt


def shapes_of(bundle: Bundle | Path | str) -> InputShapes | None:
    """The input shapes that a bundle's engine was last built for; None where its manifest names none.

    Raises:
        InputError: no bundle, or a damaged manifest.
    """
    text = (Bundle.open(bundle).require_manifest().engine or {}).get("profile")
    return None if text is None else parse_shapes(str(text))


def describe_engine(built: BuildReport) -> dict[str, Any]:
    """The manifest's `engine` entry of a finished build."""
    options, gpu = built.options, next(iter(find_gpus()), None)
    return {
        "flavour": built.builder,
        "version": built.version,
        "gpu": gpu and gpu.name,
        "compute_capability": gpu and list(gpu.compute_capability),
        "profile": str(options.shapes),
        "tf32": options.tf32,
        "version_compatible": options.version_compatible,
        "hardware": options.hardware,
        "targets": list(options.compute_capabilities),
        "build_s": round(built.seconds, 3),
        "plan_bytes": built.plan_bytes,
        "trtexec": built.trtexec_equivalent,
        "warnings": list(built.warnings[:_WARNINGS_KEPT]),
        "layers": [dataclasses.asdict(layer) | {"onnx_nodes": list(layer.onnx_nodes)} for layer in built.layers],
    }
