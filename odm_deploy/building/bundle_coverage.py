"""What the engine of a bundle runs as int8: as recorded when it was built, or from a build for this look alone."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from odm_deploy.building.build import build_engine
from odm_deploy.building.bundle_engine import say_warnings
from odm_deploy.building.coverage import Coverage, coverage
from odm_deploy.building.cpu_layers import cpu_layers
from odm_deploy.building.layer_table import LayerRecord, recorded_layers
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import PLAN_FILE
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.metadata import layer_of_run
from odm_deploy.machine.builders import choose_builder
from odm_deploy.progress import Say, silent


def bundle_coverage(
    bundle: Bundle,
    shapes: InputShapes,
    *,
    runtime: str | None = None,
    rebuild: bool = False,
    timeout_s: float = 600.0,
    say: Say = silent,
) -> tuple[Coverage, str]:
    """Compare what a bundle's graph asks for with what its engine does; returns that, and where the layers are from.

    Args:
        bundle: a bundle, an engine.plan in one, or a model.onnx, of which an engine is built and thrown away.
        shapes: multiply-accumulates are counted at its `opt` shape; a build is for these.
        runtime: one of `CPU_RUNTIMES`, to ask that instead of an engine; it gets the bundle's graph for CPUs.
        rebuild: whether to build anew rather than read what the bundle recorded.
        timeout_s: how long a build may take.
        say: takes lines about a build.

    Raises:
        InputError: there is no graph, or it is unreadable.
        BuildError, MissingError: as `build_engine`.
    """
    if runtime is not None:
        name = runtime.replace("-", "_")
        taken = bundle.seen_by(name)
        made = cpu_layers(name, taken.onnx_bytes, taken.graph, shapes)
        found = coverage(taken.graph, made.records, shapes, reasons=made.reasons)
        return _with_bits(found, bundle), made.source
    graph = bundle.graph
    engine = None if bundle.kind == "onnx" or bundle.manifest is None else bundle.manifest.engine
    if engine is None or rebuild:
        layers, source = _build(bundle, BuildOptions(shapes=shapes, timeout_s=timeout_s), say)
    else:
        layers = recorded_layers(engine)
        source = f"{engine['flavour']} {engine['version']}, when the bundle was built"
    return _with_bits(coverage(graph, layers, shapes), bundle), source


def _with_bits(found: Coverage, bundle: Bundle) -> Coverage:
    """The int8 of an engine holds codes of 2 to 8 bits: which, only the manifest says."""
    if bundle.manifest is None:
        return found
    bits = [bundle.manifest.bits_of(layer_of_run(layer.name)) or (None, None) for layer in found.layers]
    layers = zip(found.layers, bits, strict=True)
    return Coverage(tuple(replace(layer, weight_bits=w, activation_bits=a) for layer, (w, a) in layers))


def _build(bundle: Bundle, options: BuildOptions, say: Say) -> tuple[list[LayerRecord], str]:
    builder = choose_builder()
    say(f"building with {builder.name} {builder.version} to see its layers")
    assert bundle.onnx_path is not None
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        report = build_engine(bundle.onnx_path, Path(folder) / PLAN_FILE, options)
    say_warnings(report, say)
    return list(report.layers), f"{report.builder} {report.version}, built just now"
