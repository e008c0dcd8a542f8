"""`odm-deploy report BUNDLE --images DIR`: one page that shows whether, how well and how fast a bundle works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import images_option, proof_options
from odm_deploy.terminal import emit_json, json_option, progress, say


@click.command("report")
@click.argument("model", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The page to write, .html.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the figures as markdown.")
@images_option
@proof_options
@click.option("--float", "weights", type=click.Path(path_type=Path), help="Float weights of the same network.")
@click.option("--crops", type=click.IntRange(0), default=3, show_default=True, help="Show crops of this many images.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="Time the bundle next to its float twin.")
@click.option(
    "--seconds", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Time to spend on that."
)
@click.option(
    "--quick", is_flag=True, help="A page in a minute or two: two images, a second of timing, no layer-by-layer proof."
)
@click.option("--build", is_flag=True, help="Build an engine for int8 coverage where the bundle has none.")
@json_option
def command(
    model: Path,
    output: Path,
    markdown: Path | None,
    images: Path,
    weights: Path | None,
    crops: int,
    bench: bool,
    seconds: float,
    quick: bool,
    build: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write one self-contained HTML page about BUNDLE: verdict, quality, speed, layers, and crops to look at.

    The page loads nothing from any server. It is written whatever the verdict; if that is no, the exit code is 3,
    as with `odm-deploy verify`.
    """
    from odm_deploy.errors import GateError, UsageError
    from odm_deploy.files import MARKDOWN, check_file, write_text

    with slow_imports():
        from odm_deploy.proof.verify import VerifyOptions
        from odm_deploy.report.make import ReportOptions, make_report
        from odm_deploy.report.page import check_can_render, to_html, to_report_markdown

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot write {output}", why="the report is a page", fix="end it in .html")
    check_file(output)
    if markdown is not None:
        if markdown.resolve() == output.resolve():
            raise UsageError(f"cannot write {output}", why="it is named twice", fix="name another file with --markdown")
        check_file(markdown, MARKDOWN)
    check_can_render()
    if quick:
        options["max_images"] = min(options["max_images"] or 2, 2)
        seconds = min(seconds, 1.0)
    proof = VerifyOptions(**options, layers=not quick)
    wanted = ReportOptions(proof, weights, crops, bench, seconds, build)
    with progress("images") as track:
        content = make_report(model, images, wanted, say=say, track=track)
    write_text(output, to_html(content))
    if markdown is not None:
        write_text(markdown, to_report_markdown(content))
    if as_json:
        size = output.stat().st_size
        emit_json({"output": str(output), "bytes": size, "passed": content.passed, "verdict": content.verdict})
    else:
        say(f"wrote {output}: {content.verdict}" if content.passed else f"wrote {output}")
    if not content.passed:
        raise GateError(content.verdict)
