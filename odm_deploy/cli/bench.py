"""`odm-deploy bench`: how fast, and how much faster than in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.options import precision_option, runtime_option, threads_option
from odm_deploy.errors import GateError, UsageError
from odm_deploy.terminal import SIZE, emit_json, json_option, print_table, progress, say, show


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@runtime_option()
@click.option(
    "--size",
    type=SIZE,
    metavar="WxH",
    help="Input size in pixels.  [default: what the engine is tuned for, or 320x180]",
)
@click.option("--batch", default=1, show_default=True, help="Images a run.")
@click.option("--iterations", type=int, help="Counted runs of each model.  [default: what fits into --seconds]")
@click.option("--seconds", default=5.0, show_default=True, help="Time to spend measuring; three runs of each at least.")
@threads_option
@precision_option("Arithmetic of what is not int8 (bf16: OpenVINO on CPUs that have it).")
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Time the float twin, too.")
@click.option(
    "--fail-slower",
    type=float,
    metavar="RATIO",
    help="Exit with 3 if the model takes more than RATIO times as long as its float twin.",
)
@json_option
def command(
    model: Path,
    runtime: str | None,
    size: tuple[int, int] | None,
    baseline: bool,
    fail_slower: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Time MODEL: a bundle, a model.onnx or an engine.plan.

    Its float twin is timed in alternation: the same network without quantization, with the same runtime and options.
    Durations that lie far apart are measured again, and called unsteady if they stay so; then the ratio
    of the fastest runs is told, where several agree.
    """
    from odm_deploy.bench.benchmark import benchmark
    from odm_deploy.bench.timing import Effort
    from odm_deploy.runtimes.options import RuntimeOptions

    if fail_slower is not None and (fail_slower <= 0 or not baseline):
        raise UsageError("--fail-slower", why="it needs a positive ratio and the float twin")
    with progress("timing") as track:
        report = benchmark(
            model,
            runtime,
            size=None if size is None else (size[1], size[0]),
            batch=options["batch"],
            options=RuntimeOptions(threads=options["threads"], precision=options["precision"]),
            effort=Effort(options["iterations"], options["seconds"]),
            baseline=baseline,
            track=track,
            say=say,
        )
    for reason in report.passed_over:
        say(f"passed over: {reason}")
    if as_json:
        emit_json(report.to_dict())
    else:
        print_table(report.to_table())
        for line in (report.gpu_line(), *report.explanation()):
            if line:
                show(line)
    if line := report.unsteady_line():
        say(line)
    if baseline and report.baseline is None:
        say(f"no float twin: {report.baseline_note}")
    if fail_slower is None:
        return
    if report.speedup is None or report.slowdown_range is None:
        raise GateError("--fail-slower cannot be judged", why=report.baseline_note)
    slower = 1 / report.speedup
    least, most = report.slowdown_range
    if not report.steady and least <= fail_slower < most:
        raise GateError(
            "--fail-slower cannot be judged",
            why=f"the model takes {least:.2f} to {most:.2f} times as long as its float twin, too unsteady to tell",
            fix="let nothing else run meanwhile, or measure longer with --seconds",
        )
    if slower > fail_slower:
        raise GateError(
            "the quantized model is too slow",
            why=f"it takes {slower:.2f} times as long as its float twin, --fail-slower allows {fail_slower:g}",
            fix="see with `odm-deploy inspect` which layers run as int8, or try another --runtime",
        )
