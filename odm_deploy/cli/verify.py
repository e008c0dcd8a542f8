"""`odm-deploy verify BUNDLE --against model.pt --images DIR`: proof that a runtime computes the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.trust import trust_option
from odm_deploy.terminal import emit_json, json_option, progress, say

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from odm_deploy.proof.golden import GoldenReport
    from odm_deploy.proof.layers import LayerParity, Rounding
    from odm_deploy.proof.parity import Gates, ParityReport
    from odm_deploy.proof.samples import SampleFile
    from odm_deploy.proof.torch_reference import TorchReference
    from odm_deploy.quantization.model import QuantizedModel
    from odm_deploy.runtimes.base import Runtime, RuntimeOptions

LAYER_CROP_PX = 96
LAYER_IMAGES = 4
FLOOR_DRAWS = 3


@click.command("verify")
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="The model.pt. [default: the one the bundle names]")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Input images: a folder, file or glob.")
@click.option("--truth", type=click.Path(path_type=Path), help="Ground truth. [default: HR beside LR_bicubic/X4]")
@click.option("--runtime", help="onnxruntime, openvino, tensorrt, ... [default: TensorRT on a GPU, else onnxruntime]")
@click.option("--max-images", type=click.IntRange(1), help="Stop after this many images.")
@click.option("--layers/--no-layers", default=True, help="Compare the codes of every layer, teacher-forced.")
@click.option("--max-lsb", type=int, help="Gate: largest difference of two values, in 8-bit steps.")
@click.option("--min-identical", type=float, help="Gate: smallest share of identical values, 0..1.")
@click.option("--max-psnr-drop", "max_psnr_drop_db", type=float, help="Gate: largest loss against ground truth, dB.")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", help="Float arithmetic (OpenVINO).")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the report as markdown.")
@trust_option
@json_option
def command(model: Path, as_json: bool, markdown: Path | None, **options: Any) -> None:
    """Prove that a runtime computes from BUNDLE (or a model.onnx) what the reference model computes.

    The same image bytes go through the fake-quantized torch model and the runtime. Differences are shown beside the
    noise floor: how far the reference's own legitimate roundings (float64, jittered float32) are from each other.
    Exact models (`--profile exact` of the calibration) have to agree in every bit, here and on the golden images.
    Without a gate, the verdict is whether every layer, fed with the reference's codes, flips no more of its own than
    rounding ties explain, and the output is no further away than the floor; a no ends with exit code 3.
    """
    from odm_deploy.errors import GateError, InputError
    from odm_deploy.files import atomic_path
    from odm_deploy.proof.parity import Gates
    from odm_deploy.proof.parity_text import to_markdown, verdict

    gates = Gates(options["max_lsb"], options["min_identical"], options["max_psnr_drop_db"])
    try:
        report = verify_model(model, options)
    except InputError as error:
        # A wrong number may also be one that no runtime takes; then the verdict is no, and its layer is known.
        if changed := _changed_layers(model):
            named = ", ".join(name or "its inputs and outputs" for name in changed)
            raise GateError(f"{model} is not what was written: {named}", why=str(error)) from error
        raise
    failures = report.failures(gates)
    if markdown is not None:
        with atomic_path(markdown) as temporary:
            temporary.write_text(to_markdown(report, gates), encoding="utf-8")
    if as_json:
        emit_json(report.to_dict(gates))
    else:
        _print(report, gates)
    if failures:
        raise GateError(verdict(report, gates))


def verify_model(path: Path, options: dict[str, Any]) -> ParityReport:
    """Open everything, compare layer by layer, then end to end."""
    from odm_deploy.errors import InputError
    from odm_deploy.proof.layers import rounding_of
    from odm_deploy.proof.parity import ParityReport, compare
    from odm_deploy.proof.samples import find_samples
    from odm_deploy.proof.torch_reference import TorchReference
    from odm_deploy.quantization.exact.freeze import is_exact
    from odm_deploy.runtimes.base import RuntimeOptions
    from odm_deploy.runtimes.registry import FAITHFUL_FIRST, open_runtime

    model = reference_of(path, options["against"])
    run_options = RuntimeOptions(threads=options["threads"], precision=options["precision"])
    files = find_samples(options["images"], options["truth"], model.scale, options["max_images"])
    with (
        open_runtime(path, options["runtime"], run_options, order=FAITHFUL_FIRST) as runtime,
        progress("images") as track,
    ):
        report = ParityReport({**runtime.describe(), "rounding_note": runtime.rounding_note}, exact=is_exact(model))
        for reason in runtime.passed_over:
            say(f"passed over: {reason}")
        if options["layers"]:
            report.layers = _compare_layers(path, model, runtime, run_options, files[:LAYER_IMAGES])
        try:
            reference = TorchReference(model)
            compare(
                reference,
                TorchReference(model, "float64"),
                runtime,
                (file.load(model.scale) for file in files),
                report,
                shave=model.scale,
                jittered=_jittered(model, reference, rounding_of(report.layers, runtime.rounding_steps)),
                track=lambda items: track(items, len(files)),
            )
        except InputError as error:
            raise InputError(f"cannot compare {path} with its reference", why=str(error)) from error
        report.golden = _check_golden(path, runtime, run_options, layers=options["layers"])
    return report


def _jittered(model: QuantizedModel, reference: TorchReference, rounding: Rounding) -> list[Any]:
    """Draws of the noise floor beyond float64; none where sums are exact and so are quotients: jitter invents flips."""
    from dataclasses import asdict
    from functools import partial

    from odm_deploy.quantization.exact.freeze import is_exact
    from odm_deploy.quantization.exact.sums import sums_are_exact

    dividing_is_exact = all(layer.grid.is_power_of_two for layer in model.layers.values())
    if is_exact(model) or (dividing_is_exact and sums_are_exact(model)):
        return []
    how = asdict(rounding)
    return [partial(reference.upscale_jittered, seed=seed, **how) for seed in range(FLOOR_DRAWS)]


def reference_of(path: Path, against: Path | None) -> QuantizedModel:
    """The model.pt to hold the bundle against: the one named, or the bundle's own if it still is what it was."""
    from odm_deploy.checkpoint import file_sha256, load_model
    from odm_deploy.errors import InputError, UsageError
    from odm_deploy.manifest import manifest_beside

    manifest = manifest_beside(path)
    if against is None:
        if manifest is None:
            raise UsageError("nothing to verify against", why=f"{path} is no bundle", fix="add --against model.pt")
        against = Path(manifest.checkpoint["path"])
    model = load_model(against)
    if manifest is not None and file_sha256(against) != manifest.checkpoint["sha256"]:
        raise InputError(
            f"{against} is not what {path} was made from",
            why="its SHA-256 differs from the one in the manifest",
            fix=f"export again: odm-deploy export {against} -o {path}",
        )
    return model


def _compare_layers(
    path: Path, model: QuantizedModel, runtime: Runtime, options: RuntimeOptions, files: list[SampleFile]
) -> list[LayerParity]:
    """Teacher-forced flip rates on the centers of a few images; empty where the layers cannot be told apart."""
    from odm_deploy.errors import BuildError, MissingError
    from odm_deploy.proof.layers import compare_layers

    lowered = _lowered_graph(path)
    if lowered is None:
        say("layers not compared: there is no model.onnx to see them in")
        return []
    crops = _crops(files, model.scale)
    if runtime.model_kind == "onnx":
        return compare_layers(model, lowered, lambda data: type(runtime).open_bytes(data, options), crops)
    from odm_deploy.proof.forced_engine import forced_engine_opener
    from odm_deploy.runtimes.tensorrt.plan_file import engine_facts

    height, width = (min(crop.shape[axis] for crop in crops) for axis in (2, 3))
    tf32 = bool(engine_facts(path).get("tf32", True))
    say(f"building an engine for {height}x{width} whose layers can be told apart")
    try:
        opener = forced_engine_opener(runtime, lowered, (height, width), tf32=tf32)
        return compare_layers(model, lowered, opener, [crop[:, :, :height, :width] for crop in crops])
    except (BuildError, MissingError) as error:
        say(f"layers not compared: {error}")
        return []


def _crops(files: list[SampleFile], scale: int) -> list[NDArray[np.float32]]:
    """The centers of images, float32 [1, 3, H, W] in 0..255."""
    from odm_deploy.imaging.pixels import to_batch

    crops: list[NDArray[np.float32]] = []
    for sample in (file.load(scale) for file in files):
        top, left = (max(0, (size - LAYER_CROP_PX) // 2) for size in sample.low.shape[:2])
        crop = sample.low[top : top + LAYER_CROP_PX, left : left + LAYER_CROP_PX]
        crops.append(to_batch(crop))
    return crops


def _check_golden(path: Path, runtime: Runtime, options: RuntimeOptions, *, layers: bool) -> GoldenReport | None:
    """The golden images of an exact bundle on the runtime; None where the bundle has none, or an engine takes none."""
    from odm_deploy.errors import InputError
    from odm_deploy.proof.golden import check_golden, read_golden

    golden = read_golden(path if path.is_dir() else path.parent)
    if golden is None:
        return None
    is_engine = runtime.model_kind == "plan"
    reopen = None if is_engine or not layers else lambda data: type(runtime).open_bytes(data, options)
    try:
        return check_golden(golden, runtime, _lowered_graph(path), reopen)
    except InputError as error:
        if not is_engine:
            raise
        say(f"golden outputs not compared: {error}")
        return None


def _changed_layers(path: Path) -> list[str]:
    """Layers of an exact bundle whose part of `model.onnx` is not what was written; empty for other bundles."""
    from odm_deploy.proof.golden import changed_layers, read_golden

    golden = read_golden(path if path.is_dir() else path.parent)
    lowered = _lowered_graph(path)
    return [] if golden is None or lowered is None else changed_layers(golden, lowered)


def _lowered_graph(path: Path) -> onnx.ModelProto | None:
    from odm_deploy.graphs.files import parse_onnx
    from odm_deploy.manifest import ONNX_FILE

    file = path / ONNX_FILE if path.is_dir() else path.with_name(ONNX_FILE) if path.suffix == ".plan" else path
    return parse_onnx(file.read_bytes(), label=str(file)) if file.suffix == ".onnx" and file.is_file() else None


def _print(report: ParityReport, gates: Gates) -> None:
    from rich.console import Console

    from odm_deploy.proof.parity_text import summary_table, verdict, worst_layers_table

    console = Console()
    console.print(summary_table(report))
    if report.layers:
        console.print(worst_layers_table(report))
    console.print(verdict(report, gates), highlight=False, soft_wrap=True)
    if report.distance.differing and report.runtime["rounding_note"]:
        console.print(report.runtime["rounding_note"], style="dim", highlight=False, soft_wrap=True)
