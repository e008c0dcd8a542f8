"""`make_report`: finds out everything that a page about a bundle says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from odm_deploy.bench.benchmark import benchmark
from odm_deploy.bench.report import BenchReport
from odm_deploy.bench.timing import Effort
from odm_deploy.building.bundle_coverage import bundle_coverage
from odm_deploy.building.coverage import Coverage
from odm_deploy.bundle import Bundle
from odm_deploy.errors import OdmError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.imaging.pairs import find_samples
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.networks.loading import load_same
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.proof.evaluation import upscaler_of
from odm_deploy.proof.reference import reference_of
from odm_deploy.proof.verify import VerifyOptions, judging_changes, open_faithful, prove
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.report.content import ReportContent
from odm_deploy.report.crops import crop_row
from odm_deploy.report.layer_statistics import measure_layers, weight_errors
from odm_deploy.runtimes.options import RuntimeOptions

STATISTICS_IMAGES = 4
"""Images whose activations are counted: a few say as much about distributions as many."""
_HASH_DIGITS = 12
"""Enough to tell a user's files apart; the manifest has all."""
COVERAGE_SHAPES = InputShapes.up_to(270, 480)
"""Input shapes whose multiply-accumulates are counted."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report is to say."""

    verify: VerifyOptions = field(default_factory=VerifyOptions)
    """How the proof is made; its runtime and threads are also those of crops and latency."""
    weights: Path | None = None
    """Float weights of the same network, to compare with; None goes without."""
    crops: int = 3
    """Show crops of this many images."""
    bench: bool = True
    """Whether to time the bundle beside its float twin."""
    bench_seconds: float = 4.0
    """Time to spend on that."""
    build: bool = False
    """Whether to build an engine for int8 coverage where the bundle has none."""


def make_report(
    bundle: Bundle | Path | str,
    images: Path | str,
    options: ReportOptions = ReportOptions(),
    *,
    say: Say = silent,
    track: Track = untracked,
) -> ReportContent:
    """Prove, measure, time and look at a bundle, for `report.page` to write down; arguments as of `verify`.

    Raises:
        InputError: as `verify`, or the float weights are unusable.
        UsageError, GateError: as `verify`.
        MissingError: as `verify`, or with `build` there is no builder.
        BuildError: with `build`, the builder refused the graph.
    """
    opened = Bundle.open(bundle)
    reference = reference_of(opened, options.verify.against)
    # Before what takes minutes: whatever may turn out to be unusable.
    real = None
    if options.weights is not None:
        real = load_same(options.weights, reference.network)
    found, coverage_note = _coverage(opened, say, build=options.build)
    files = find_samples(Path(images), options.verify.truth, reference.scale, options.verify.max_images)
    with judging_changes(opened), open_faithful(opened, options.verify) as runtime:
        parity = prove(opened, reference, runtime, files, options.verify, say=say, track=track)
        if not (parity.within_floor or parity.exact or options.verify.layers):
            # On small images one rounding tie is more than a noise floor without any: layers tell which it is.
            say("the pictures differ by more than the noise floor: comparing layer by layer, too")
            thorough = dataclasses.replace(options.verify, layers=True)
            parity = prove(opened, reference, runtime, files, thorough, say=say, track=track)
        counted = files[:STATISTICS_IMAGES]
        seen = track(counted, len(counted), "distributions of the layers")
        layers = measure_layers(reference, (to_batch(file.load().low) for file in seen))
        shown = track(files[: options.crops], min(options.crops, len(files)), "crops")
        float_upscale = None if real is None else upscaler_of(real)
        crops = [crop_row(file.load(), file.scale, runtime.upscale, float_upscale) for file in shown]
    bench, bench_note = _bench(opened, options, say, track)
    return ReportContent(
        title=f"{opened.path.resolve().name}: {reference.network.title} x{reference.scale}",
        facts=_facts(opened, reference),
        parity=parity,
        layers=layers,
        crops=crops,
        weight_errors={} if real is None else weight_errors(reference, dict(real.state_dict())),
        bench=bench,
        bench_note=bench_note,
        coverage=found,
        coverage_note=coverage_note,
    )


def _bench(bundle: Bundle, options: ReportOptions, say: Say, track: Track) -> tuple[BenchReport | None, str]:
    """Latency beside the float twin, or why there is none."""
    if not options.bench:
        return None, "Not measured (--no-bench)."
    try:
        timed = benchmark(
            bundle,
            options.verify.runtime,
            options=RuntimeOptions(threads=options.verify.threads),
            effort=Effort(seconds=options.bench_seconds),
            track=partial(track, stage="timing"),
            say=say,
        )
    except OdmError as error:
        # The proof is done by now, and worth a page without this figure.
        return None, f"Not measured: {error}."
    return timed, ""


def _coverage(bundle: Bundle, say: Say, *, build: bool) -> tuple[Coverage | None, str]:
    """What an engine runs as int8 and where that is known from, or why it is not known."""
    if not build and (bundle.manifest is None or bundle.manifest.engine is None):
        return None, "Not known: the bundle has no engine (--build builds one to see its layers)."
    return bundle_coverage(bundle, COVERAGE_SHAPES, say=say)


def _facts(bundle: Bundle, reference: QuantizedModel) -> list[tuple[str, str]]:
    """What the bundle is: name and value."""
    bits = sorted({f"w{layer.weight_bits}a{layer.grid.bits}" for layer in reference.layers.values()})
    facts = [
        ("network", f"{reference.network.title} x{reference.scale}"),
        ("quantized layers", f"{len(reference.layers)}, {', '.join(bits)}"),
    ]
    manifest = bundle.manifest
    if manifest is not None:
        facts += [
            ("ONNX", ", ".join(f"{key} {manifest.onnx[key]}" for key in ("opset", "precision", "io"))),
            ("written by", manifest.created_by),
            ("model.pt", f"SHA-256 {manifest.checkpoint.get('sha256', 'unknown')[:_HASH_DIGITS]}"),
        ]
    return facts
