"""`odm-deploy report BUNDLE --images DIR`: one page that shows whether, how well and how fast a bundle works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.trust import trust_option
from odm_deploy.terminal import emit_json, json_option, progress, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from odm_deploy.bench.report import BenchReport
    from odm_deploy.building.coverage import Coverage
    from odm_deploy.imaging.pairs import SampleFile
    from odm_deploy.networks.base import SuperResolutionNetwork
    from odm_deploy.quantization.model import QuantizedModel
    from odm_deploy.report.content import ReportContent
    from odm_deploy.report.crops import CropRow, Pixels, Upscale

STATISTICS_IMAGES = 4
"""Images whose activations are counted: a few say as much about distributions as many."""


@click.command("report")
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The page to write, .html.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the figures as markdown.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Input images: a folder, file or glob.")
@click.option("--truth", type=click.Path(path_type=Path), help="Ground truth. [default: HR beside LR_bicubic/X4]")
@click.option("--against", type=click.Path(path_type=Path), help="The model.pt. [default: the one the bundle names]")
@click.option("--float", "weights", type=click.Path(path_type=Path), help="Float weights of the same network.")
@click.option("--runtime", help="onnxruntime, openvino, tensorrt, ... [default: TensorRT on a GPU, else onnxruntime]")
@click.option("--max-images", type=click.IntRange(1), help="Stop after this many images.")
@click.option("--crops", type=click.IntRange(0), default=3, show_default=True, help="Show crops of this many images.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="Time the bundle beside its float twin.")
@click.option("--build", is_flag=True, help="Build an engine for int8 coverage where the bundle has none.")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@trust_option
@json_option
def command(model: Path, output: Path, markdown: Path | None, as_json: bool, **options: Any) -> None:
    """Write one self-contained HTML page about BUNDLE: verdict, quality, speed, layers, and crops to look at.

    The page asks nothing of any server. It is written whatever the verdict; a no ends with exit code 3, as that of
    `odm-deploy verify` does.
    """
    from odm_deploy.errors import GateError, UsageError
    from odm_deploy.files import atomic_path
    from odm_deploy.report.page import check_can_render, to_html, to_report_markdown

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot write {output}", why="the report is a page", fix="end it in .html")
    check_can_render()
    content = _content(model, options)
    texts = {output: to_html(content)}
    if markdown is not None:
        texts[markdown] = to_report_markdown(content)
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        emit_json(
            {
                "output": str(output),
                "bytes": output.stat().st_size,
                "passed": content.passed,
                "verdict": content.verdict,
            }
        )
    else:
        say(f"wrote {output}: {content.verdict}")
    if not content.passed:
        raise GateError(content.verdict)


def _content(path: Path, options: dict[str, Any]) -> ReportContent:
    """Find out everything the report says."""
    from odm_deploy.imaging.pairs import find_samples
    from odm_deploy.proof.reference import reference_of
    from odm_deploy.proof.verify import VerifyOptions, verify
    from odm_deploy.report.content import ReportContent
    from odm_deploy.report.layer_statistics import measure_layers, weight_errors

    reference = reference_of(path, options["against"])
    # Before what takes minutes: whatever may turn out to be unusable.
    real = None if options["weights"] is None else _float_network(reference, options["weights"])
    found, coverage_note = _coverage(path, build=options["build"])
    how = {name: options[name] for name in ("against", "truth", "runtime", "max_images", "threads")}
    with progress("images") as track:
        parity = verify(path, options["images"], VerifyOptions(**how), say=say, track=track)
    files = find_samples(options["images"], options["truth"], reference.scale, options["max_images"])
    say("measuring the layers")
    layers = measure_layers(reference, _inputs(files[:STATISTICS_IMAGES]))
    crops = _crops(path, options, reference.scale, files[: options["crops"]], real)
    bench, bench_note = _bench(path, options)
    return ReportContent(
        title=f"{path.resolve().name}: {reference.network.name} x{reference.scale}",
        facts=_facts(path, reference),
        parity=parity,
        layers=layers,
        crops=crops,
        weight_errors={} if real is None else weight_errors(reference, _state(real)),
        bench=bench,
        bench_note=bench_note,
        coverage=found,
        coverage_note=coverage_note,
    )


def _inputs(files: Sequence[SampleFile]) -> Iterator[NDArray[np.float32]]:
    """The samples as networks take them: float32 [1, 3, H, W]."""
    from odm_deploy.imaging.pixels import to_batch

    for file in files:
        yield to_batch(file.load().low)


def _float_network(reference: QuantizedModel, weights: Path) -> SuperResolutionNetwork:
    from odm_deploy.networks.registry import network_from_state_dict
    from odm_deploy.networks.state_dict import read_state_dict

    return network_from_state_dict(reference.network.name, read_state_dict(weights), reference.scale)


def _state(network: SuperResolutionNetwork) -> dict[str, Tensor]:
    return dict(network.state_dict())


def _crops(
    path: Path,
    options: dict[str, Any],
    scale: int,
    files: Sequence[SampleFile],
    real: SuperResolutionNetwork | None,
) -> list[CropRow]:
    from odm_deploy.imaging.pixels import to_batch, to_pixels
    from odm_deploy.report.crops import crop_row
    from odm_deploy.runtimes.base import RuntimeOptions
    from odm_deploy.runtimes.registry import FAITHFUL_FIRST, open_runtime

    run_options = RuntimeOptions(threads=options["threads"])
    with (
        open_runtime(path, options["runtime"], run_options, order=FAITHFUL_FIRST) as runtime,
        progress("crops") as track,
    ):
        quantized: Upscale = lambda low: to_pixels(runtime.upscale(to_batch(low)))  # noqa: E731
        return [
            crop_row(file.load(), scale, quantized, None if real is None else _float_upscale(real))
            for file in track(files, len(files))
        ]


def _float_upscale(network: SuperResolutionNetwork) -> Upscale:
    import torch

    from odm_deploy.imaging.pixels import to_batch, to_pixels

    @torch.no_grad()
    def upscale(low: Pixels) -> Pixels:
        return to_pixels(network(torch.from_numpy(to_batch(low))).numpy())

    return upscale


def _bench(path: Path, options: dict[str, Any]) -> tuple[BenchReport | None, str]:
    """Latency beside the float twin, or why there is none."""
    from odm_deploy.bench.benchmark import benchmark
    from odm_deploy.bench.timing import Effort
    from odm_deploy.errors import OdmError
    from odm_deploy.runtimes.base import RuntimeOptions

    if not options["bench"]:
        return None, "Not measured (--no-bench)."
    try:
        with progress("timing") as track:
            timed = benchmark(
                path,
                options["runtime"],
                options=RuntimeOptions(threads=options["threads"]),
                effort=Effort(seconds=4.0),
                track=track,
            )
    except OdmError as error:
        # The proof is done by now, and worth a page without this figure.
        return None, f"Not measured: {error}."
    return timed, ""


def _coverage(path: Path, *, build: bool) -> tuple[Coverage | None, str]:
    """What an engine runs as int8 and where that is known from, or why it is not known."""
    from odm_deploy.building.coverage import coverage
    from odm_deploy.cli.inspect import layers_of
    from odm_deploy.graphs.input_shapes import InputShapes
    from odm_deploy.manifest import manifest_beside

    manifest = manifest_beside(path)
    if not build and (manifest is None or manifest.engine is None):
        return None, "Not known: the bundle has no engine (--build builds one to see its layers)."
    shapes = InputShapes.up_to(270, 480)
    graph, layers, source = layers_of(path, shapes, rebuild=False, timeout_s=600.0)
    return coverage(graph, layers, shapes), source


def _facts(path: Path, reference: QuantizedModel) -> list[tuple[str, str]]:
    from odm_deploy.manifest import manifest_beside

    bits = sorted({f"w{layer.weight_bits}a{layer.grid.bits}" for layer in reference.layers.values()})
    facts = [
        ("network", f"{reference.network.name} x{reference.scale}"),
        ("quantized layers", f"{len(reference.layers)}, {', '.join(bits)}"),
    ]
    manifest = manifest_beside(path)
    if manifest is not None:
        facts += [
            ("ONNX", ", ".join(f"{key} {manifest.onnx[key]}" for key in ("opset", "precision", "io"))),
            ("written by", manifest.created_by),
            ("model.pt", f"SHA-256 {manifest.checkpoint['sha256']}"),
        ]
    return facts
