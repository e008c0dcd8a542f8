"""The engine of a bundle: built when the bundle is exported, and again on every machine that is to run it otherwise.

A plan runs on the flavour, version and mostly the GPU it was built for, `model.onnx` runs everywhere. Building needs no
torch and no checkpoint: a bundle carries all it takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odm_deploy.building.build import BuildProgress, BuildReport, build_engine
from odm_deploy.errors import InputError, MissingError
from odm_deploy.graphs.input_shapes import ShapeProfile, parse_profile
from odm_deploy.machine.builders import choose_builder, find_gpus
from odm_deploy.manifest import ONNX_FILE, PLAN_FILE, Manifest, read_manifest

Say = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """Whether and how to build the engine."""

    wanted: bool = True
    """False leaves the engine out."""
    flavour: str | None = None
    """`tensorrt` or `tensorrt_rtx`; None takes what is installed and leaves the engine out when nothing is."""
    profile: ShapeProfile = dataclasses.field(default_factory=lambda: ShapeProfile.up_to(1080, 1920))
    """Input shapes the engine takes."""
    timeout_s: float = 600.0
    """The build is stopped after this many seconds."""
    workspace_mib: int | None = None
    """Limit of the scratch memory a kernel may use; None for the builder's default."""
    optimization_level: int | None = None
    """0 (fast build) to 5 (fast engine); None for the builder's default."""
    timing_cache: Path | None = None
    """File with kernel timings that speeds up later builds, or a folder of such files."""
    tf32: bool = True
    """Whether float32 convolutions may round their operands to 11 significant bits."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, such as `SM86`; TensorRT-RTX only. Empty for its default, Ampere and later."""
    version_compatible: bool = False
    """Let later versions of the same major version load the plan; `tensorrt` only."""
    hardware: str = "this"
    """GPUs that are to run the plan: `this`, `same-capability` or `ampere+`; `tensorrt` only."""


def build_bundle_engine(
    onnx_path: Path,
    plan_path: Path,
    options: EngineOptions,
    say: Say,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport | None:
    """Build the engine beside a bundle's ONNX file; None where none is wanted, or none can be built and none was named.

    Args:
        onnx_path: what to build.
        plan_path: where the engine goes.
        options: whether and how.
        say: takes a line of progress, or the reason for None.
        on_progress: takes the builder's progress.

    Raises:
        BuildError: the builder refused, crashed or ran out of time.
        MissingError: the builder that was asked for by name cannot build here.
    """
    if not options.wanted:
        return None
    try:
        flavour = choose_builder(options.flavour)
    except MissingError as error:
        if options.flavour is not None:
            raise
        say(f"no {PLAN_FILE}: {error}")
        return None
    say(f"building the engine with {flavour.name} {flavour.version}")
    built = build_engine(
        onnx_path,
        plan_path,
        profiles=options.profile,
        flavour=flavour,
        timeout_s=options.timeout_s,
        workspace_mib=options.workspace_mib,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        tf32=options.tf32,
        compute_capabilities=options.compute_capabilities,
        version_compatible=options.version_compatible,
        hardware=options.hardware,
        on_progress=on_progress,
    )
    say(f"the same with NVIDIA's own tool: {built.trtexec_equivalent}")
    return built


def rebuild_engine(
    bundle: Path,
    options: EngineOptions,
    say: Say,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Manifest:
    """Build, or build anew, the engine of an existing bundle on this machine, and write down in its manifest how.

    A build that fails leaves plan and manifest as they were.

    Args:
        bundle: a bundle directory.
        options: how; the bundles of exact models are built without TF32 whatever it says.
        say: takes a line of progress.
        on_progress: takes the builder's progress.

    Returns:
        The manifest as it is now.

    Raises:
        InputError: no bundle, a damaged one, one whose model.onnx is another than its manifest says, or one that cannot
            be written to.
        BuildError: the builder refused, crashed or ran out of time.
        MissingError: no builder can build here.
    """
    manifest = read_manifest(bundle)
    onnx_path = bundle / ONNX_FILE
    if not onnx_path.is_file():
        raise InputError(f"cannot build the engine of {bundle}", why=f"it holds no {ONNX_FILE}")
    if hashlib.sha256(onnx_path.read_bytes()).hexdigest() != manifest.onnx.get("sha256"):
        # The manifest speaks for the engine, too: proofs and grids of one graph say nothing about another.
        raise InputError(
            f"cannot build the engine of {bundle}",
            why=f"its {ONNX_FILE} is not the one its manifest describes",
            fix="copy the whole bundle again, or export it again",
        )
    flavour = choose_builder(options.flavour).name
    # TF32 keeps 11 significant bits of what an engine would fall back to float for.
    tf32 = options.tf32 and manifest.exact is None
    options = dataclasses.replace(options, wanted=True, flavour=flavour, tf32=tf32)
    built = build_bundle_engine(onnx_path, bundle / PLAN_FILE, options, say, on_progress)
    assert built is not None
    rebuilt = dataclasses.replace(manifest, engine=describe_engine(built, options))
    rebuilt.write(bundle)
    return rebuilt


def profile_of(bundle: Path) -> ShapeProfile | None:
    """The input shapes that a bundle's engine was last built for; None where its manifest names none.

    Raises:
        InputError: no bundle, or a damaged manifest.
    """
    text = (read_manifest(bundle).engine or {}).get("profile")
    return None if text is None else parse_profile(str(text))


def describe_engine(built: BuildReport, options: EngineOptions) -> dict[str, Any]:
    """The manifest's `engine` entry of a finished build."""
    gpus = find_gpus()
    return {
        "flavour": built.builder,
        "version": built.version,
        "gpu": gpus[0].name if gpus else None,
        "compute_capability": list(gpus[0].compute_capability) if gpus else None,
        "profile": str(options.profile),
        "tf32": options.tf32,
        "version_compatible": options.version_compatible,
        "hardware": options.hardware,
        "targets": list(built.targets),
        "build_s": round(built.seconds, 3),
        "plan_bytes": built.plan_bytes,
        "trtexec": built.trtexec_equivalent,
        # What `inspect` needs; the tensors of each layer would make the manifest unreadable.
        "layers": [
            {"name": layer.name, "kind": layer.kind, "precision": layer.precision, "onnx_nodes": list(layer.onnx_nodes)}
            for layer in built.layers
        ],
    }
