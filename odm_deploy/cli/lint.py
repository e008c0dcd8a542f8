"""`odm-deploy lint`: what TensorRT would refuse, silently run as float or silently compute otherwise."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from odm_deploy.errors import GateError, UsageError
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, json_option, say, show

if TYPE_CHECKING:
    from odm_deploy.lowering.lint import Finding


@click.command("lint")
@click.argument("target", metavar="FILE.onnx|BUNDLE", required=False, type=click.Path(path_type=Path))
@click.option("--rules", "list_rules", is_flag=True, help="List all rules: the trap, how it shows, and the fix.")
@click.option("--fix", is_flag=True, help="Write the graph anew as TensorRT takes it, proven equal, to -o.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.onnx", help="Where --fix writes.")
@json_option
def command(target: Path | None, list_rules: bool, fix: bool, output: Path | None, as_json: bool) -> None:
    """Check any QDQ ONNX against what TensorRT does with it.

    Exit code 3 when a finding means that TensorRT refuses the graph, runs a layer as float or saturates; warnings and
    hints do not count. With --fix that is about the graph that was written.
    """
    if list_rules:
        _show_rules(as_json)
        return
    if target is None:
        raise UsageError("nothing to check", fix="name an ONNX file or a bundle")
    if fix != (output is not None):
        raise UsageError("--fix and -o go together", fix="odm-deploy lint --fix IN.onnx -o OUT.onnx")
    from odm_deploy.bundle import Bundle
    from odm_deploy.graphs.files import read_onnx
    from odm_deploy.lowering.lint import is_quantized, lint, quantizing_branches

    opened = Bundle.open(target, "an ONNX file or a bundle is wanted")
    graph = opened.graph if target.is_dir() else read_onnx(target)[0]
    if output is not None:
        # It alone wants packages that a machine with bundles need not have.
        from odm_deploy.cli.lint_fix import fix_file

        fix_file(graph, target, output, as_json=as_json)
        return
    findings = lint(graph)
    if as_json:
        emit_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for fix_of_all, alike in groupby(findings, key=lambda finding: finding.fix):
            show(*map(_as_line, alike), f"  fix: {fix_of_all}")
    failing = [finding for finding in findings if finding.severity.fails_gate]
    if failing:
        rules = ", ".join(sorted({finding.rule for finding in failing}))
        raise GateError(
            f"{target} is not what TensorRT will run",
            why=f"{counted(len(failing), 'finding')} ({rules})",
            fix=f"odm-deploy lint --fix {shlex.quote(str(target))} -o fixed.onnx rewrites what has an exact int8 form"
            # Which are not rewritten.
            if any(finding.rule != "integer-operators" for finding in failing)
            else failing[0].fix,
        )
    what = (
        counted(len(findings), "warning or hint" if len(findings) == 1 else "warnings or hint")
        if findings
        else "no findings"
    )
    if branching := quantizing_branches(graph):
        theirs = "quantizes in its own" if len(branching) == 1 else "quantize in theirs"
        what += f", but branches are not looked into: {', '.join(branching[:3])} {theirs}"
    elif not is_quantized(graph):
        what += ", and nothing in it is quantized"
    say(f"{target}: {what}")


def _show_rules(as_json: bool) -> None:
    from odm_deploy.lowering.lint import RULES

    rules = [
        {"rule": rule.id, "severity": str(rule.severity), "trap": rule.trap, "fix": rule.fix} for rule in RULES.values()
    ]
    if as_json:
        emit_json({"rules": rules})
        return
    for entry in rules:
        click.echo(f"{entry['rule']} ({entry['severity']})\n  {entry['trap']}\n  fix: {entry['fix']}\n")


def _as_line(finding: Finding) -> str:
    where = f" {finding.node}:" if finding.node else ""
    suffers = [name for name in finding.layers if name != finding.node]
    layers = f" (layers: {', '.join(suffers)})" if suffers else ""
    return f"{finding.severity} [{finding.rule}]{where} {finding.message}{layers}"
