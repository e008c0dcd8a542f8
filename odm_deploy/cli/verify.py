"""`odm-deploy verify BUNDLE --against model.pt --images DIR`: proof that a runtime computes the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import precision_option, proof_options
from odm_deploy.errors import UsageError
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, json_option, print_table, progress, say, show

if TYPE_CHECKING:
    from odm_deploy.proof.parity_report import ParityReport


@click.command("verify")
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Input images: a folder, file or glob; exact models do without."
)
@click.option("--golden", is_flag=True, help="The same as leaving --images out: an exact model's golden hashes only.")
@proof_options
@click.option("--layers/--no-layers", default=True, help="Compare the codes of every layer, teacher-forced.")
@click.option("--max-lsb", type=int, help="Gate: largest difference of two values, in 8-bit steps.")
@click.option("--min-identical", type=float, help="Gate: smallest share of identical values, 0..1.")
@click.option("--max-psnr-drop", "max_psnr_drop_db", type=float, help="Gate: largest loss against ground truth, dB.")
@precision_option("Arithmetic of what is not int8 (bf16: OpenVINO).")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the report as markdown.")
@json_option
def command(
    model: Path,
    images: Path | None,
    golden: bool,
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
    (`--profile exact`) must agree in every bit, also on the golden images.

    Without a gate, the verdict is yes if the graph is the one that model.pt lowers to, in every constant, if each
    layer, fed with the reference's codes, flips no more codes than rounding ties explain, and if the output is no
    further away than the noise floor. With gates, only they decide, but for this: a model.onnx that is not the
    manifest's is always refused, and so is one that this version wrote and that is not the model.pt's. If the verdict
    is no, the exit code is 3.

    Without --images, or with --golden, only the golden images of an exact model are compared, by default on the runtime
    that upscale takes: a production machine proves itself, with neither model.pt nor torch. That its graph is the
    model.pt's is not looked at then.
    """
    if golden and images is not None:
        raise UsageError("--golden goes without --images", why="its images are made here", fix="leave one of them out")
    if images is None:
        _verify_golden(model, options["runtime"], options["threads"], as_json)
        return
    from odm_deploy.errors import GateError
    from odm_deploy.files import MARKDOWN, check_file, write_text

    with slow_imports():
        from odm_deploy.proof.parity_report import NO_GATES, Gates
        from odm_deploy.proof.parity_text import summary_table, to_markdown, verdict, worst_layers_table
        from odm_deploy.proof.verify import VerifyOptions, verify

    if markdown is not None:
        check_file(markdown, MARKDOWN)
    gates = Gates(max_lsb, min_identical, max_psnr_drop_db)
    with progress("images") as track:
        report = verify(model, images, VerifyOptions(**options), say=say, track=track)
    failures = report.failures(gates)
    if markdown is not None:
        write_text(markdown, to_markdown(report, gates))
    if as_json:
        emit_json(report.to_dict(gates))
    else:
        print_table(summary_table(report))
        if report.layers:
            print_table(worst_layers_table(report))
        if not failures:
            show(verdict(report, gates))
        if report.distance.differing and report.runtime["rounding_note"]:
            click.secho(report.runtime["rounding_note"], dim=True)
    if failures:
        raise GateError(verdict(report, gates), fix=_judge_half(model, report) if gates == NO_GATES else "")


def _judge_half(path: Path, report: ParityReport) -> str:
    """How to judge a graph that is the model's, but for half precision, which moves more codes than rounding does."""
    from odm_deploy.bundle import Bundle
    from odm_deploy.proof.lowered_again import way_of

    if any(graph.failures for graph in report.graphs):
        return ""
    precision = way_of(Bundle.open(path)).precision
    return (
        ""
        if precision == "fp32"
        else f"what is not int8 is {precision} in this graph, which moves codes: say how far by --max-lsb or "
        f"--max-psnr-drop, or verify what is exported without --precision"
    )


def _verify_golden(path: Path, runtime: str | None, threads: int | None, as_json: bool) -> None:
    """The golden images of an exact bundle on a runtime, against what was written down at export."""
    from odm_deploy.bundle import Bundle
    from odm_deploy.errors import GateError
    from odm_deploy.proof.golden import verify_golden
    from odm_deploy.runtimes.options import RuntimeOptions

    report, described = verify_golden(Bundle.open(path), runtime, RuntimeOptions(threads=threads))
    name = described["runtime"]
    verdict = (
        f"{name} does not compute what was exported: {'; '.join(report.failures)}"
        if report.failures
        else f"{name} computes what was exported, bit for bit, on {counted(report.images, 'golden image')}"
    )
    if as_json:
        passed = not report.failures
        emit_json({"golden": report.to_dict(), "runtime": described, "passed": passed, "verdict": verdict})
    if report.failures:
        raise GateError(verdict)
    if not as_json:
        show(verdict)
