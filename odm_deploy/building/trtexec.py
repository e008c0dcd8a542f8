"""A build as a command line of NVIDIA's own tool, for bug reports and for machines without Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from odm_deploy.building.options import BuildOptions
from odm_deploy.machine.builders import TENSORRT_RTX


def trtexec_command(
    onnx_path: Path, plan_path: Path, options: BuildOptions, *, version: str, inputs: Mapping[str, Sequence[int]]
) -> str:
    """The command that builds the same engine.

    Args:
        onnx_path: the graph.
        plan_path: the engine. Where both lie in one folder, the command is meant to be run there: bundles move.
        options: how it was built; `builder` is named.
        version: the builder's version.
        inputs: dimensions of the graph's inputs by name, -1 where dynamic.
    """
    if onnx_path.parent == plan_path.parent:
        onnx_path, plan_path = Path(onnx_path.name), Path(plan_path.name)
    rtx = options.builder == TENSORRT_RTX
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}"]
    ranges = {name: options.shapes.for_input(dims) for name, dims in inputs.items() if min(dims) < 0}
    for index, option in enumerate(("minShapes", "optShapes", "maxShapes") if ranges else ()):
        shapes = (f"{name}:{'x'.join(map(str, shape[index]))}" for name, shape in ranges.items())
        words.append(f"--{option}={','.join(shapes)}")
    if not rtx and version.startswith("10."):
        # TensorRT 11 and RTX know no other mode.
        words.append("--stronglyTyped")
    words.append("--profilingVerbosity=detailed")
    if not options.tf32:
        words.append("--noTF32")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware != "this":
        level = "ampere+" if options.hardware == "ampere+" else "sameComputeCapability"
        words.append(f"--hardwareCompatibilityLevel={level}")
    if options.compute_capabilities == ("CURRENT",):
        words.append("--useGpu")
    elif options.compute_capabilities:
        words.append(f"--computeCapabilities={','.join(name[2:] for name in options.compute_capabilities)}")
    words.append("--skipInference")
    return shlex.join(words)
