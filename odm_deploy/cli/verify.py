"""`odm-deploy verify BUNDLE --against model.pt --images DIR`: proof that a runtime computes the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.trust import trust_option
from odm_deploy.terminal import emit_json, json_option, precision_option, progress, say

if TYPE_CHECKING:
    from odm_deploy.proof.parity_report import Gates, ParityReport


@click.command("verify")
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="The model.pt. [default: the one the bundle names]")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Input images: a folder, file or glob.")
@click.option("--truth", type=click.Path(path_type=Path), help="Ground truth. [default: HR next to LR_bicubic/X4]")
@click.option("--runtime", help="onnxruntime, openvino, tensorrt, ... [default: TensorRT on a GPU, else onnxruntime]")
@click.option("--max-images", type=click.IntRange(1), help="Stop after this many images.")
@click.option("--layers/--no-layers", default=True, help="Compare the codes of every layer, teacher-forced.")
@click.option("--max-lsb", type=int, help="Gate: largest difference of two values, in 8-bit steps.")
@click.option("--min-identical", type=float, help="Gate: smallest share of identical values, 0..1.")
@click.option("--max-psnr-drop", "max_psnr_drop_db", type=float, help="Gate: largest loss against ground truth, dB.")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@precision_option("Arithmetic of what is not int8 (bf16: OpenVINO).")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the report as markdown.")
@trust_option
@json_option
def command(
    model: Path,
    images: Path,
    max_lsb: int | None,
    min_identical: float | None,
    max_psnr_drop_db: float | None,
    markdown: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Prove that a runtime computes from BUNDLE (or a model.onnx) what the reference model computes.

    The same image bytes go through the fake-quantized torch model and the runtime. Differences are shown next to the
    noise floor: how far the reference is from itself, computed in float64 or with jittered roundings. Exact models
    (`--profile exact` of the calibration) must agree in every bit, also on the golden images.

    Without a gate, the verdict is yes if each layer, fed with the reference's codes, flips no more codes than rounding
    ties explain, and the output is no further away than the noise floor. A no ends with exit code 3.
    """
    from odm_deploy.errors import GateError
    from odm_deploy.files import atomic_path
    from odm_deploy.proof.parity_report import Gates
    from odm_deploy.proof.parity_text import to_markdown, verdict
    from odm_deploy.proof.verify import VerifyOptions, verify

    gates = Gates(max_lsb, min_identical, max_psnr_drop_db)
    with progress("images") as track:
        report = verify(model, images, VerifyOptions(**options), say=say, track=track)
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
