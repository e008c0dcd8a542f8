"""`odm-deploy lint --fix`: what was rewritten, what was left, the proof, and what the builder makes of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import onnx

from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import Coverage, coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle.manifest import PLAN_FILE
from odm_deploy.cli.options import keep_input
from odm_deploy.errors import GateError, MissingError
from odm_deploy.files import atomic_path, check_file
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.fixing import fix
from odm_deploy.lowering.lint import Severity, lint
from odm_deploy.machine.builders import choose_builder
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, say, show

if TYPE_CHECKING:
    from odm_deploy.lowering.fixing import Fixed
    from odm_deploy.lowering.lint import Finding

_BUILT_AT_PX = 64


def fix_file(graph: onnx.ModelProto, target: Path, output: Path, *, as_json: bool) -> None:
    """Rewrite one graph, write it, build it where a builder is, and report.

    Raises:
        InputError: the graph cannot be used.
        GateError: it could not be proven equal or nothing could be fixed (nothing is written), or what was written does
            not run as int8 whole.
        BuildError: the builder refuses what was written.
    """
    keep_input(target, output)
    check_file(output, (".onnx",))
    say(f"rewriting {target}")
    fixed = fix(graph)
    failing = [finding for finding in lint(fixed.model) if finding.severity.fails_gate]
    # A copy of what TensorRT will not run is of no use.
    before, after = ([node.op_type for node in each.graph.node] for each in (graph, fixed.model))
    is_copy = bool(failing) and not fixed.done and before == after
    if not is_copy:
        with atomic_path(output) as temporary:
            onnx.save(fixed.model, temporary)
    if any(finding.severity is Severity.ERROR for finding in failing):
        found, builder = None, "TensorRT would refuse what is left"
    else:
        found, builder = (None, "nothing was fixed") if is_copy else _build(fixed.model, output)
    if as_json:
        built: dict[str, Any] | None = None if found is None else {"builder": builder, **found.to_dict()}
        emit_json(
            {
                "done": fixed.done,
                "left": list(fixed.left),
                "equality": asdict(fixed.equality),
                "findings": [asdict(finding) for finding in failing],
                "built": built,
            }
        )
    else:
        _print(fixed, found, builder, failing)
    fallbacks = () if found is None else found.fallbacks
    if failing or fallbacks or fixed.left:
        left = (what.split(":")[0].split(" runs in float")[0] for what in fixed.left)
        names = list(dict.fromkeys([*(each.node for each in failing), *(each.name for each in fallbacks), *left]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise GateError(
            f"nothing in {target} can be fixed, and nothing was written"
            if is_copy
            else f"{output} computes the same, but TensorRT will not run all of it as int8",
            why=", ".join(names[:3]) + more,
            fix="; ".join(dict.fromkeys(each.fix for each in failing)) or f"see odm-deploy inspect {output}",
        )
    say(f"wrote {output}")


def _build(model: onnx.ModelProto, path: Path) -> tuple[Coverage | None, str]:
    """What the builder here makes of the graph; None, and why, where there is none."""
    shapes = InputShapes.static(1, _BUILT_AT_PX, _BUILT_AT_PX)
    try:
        builder = choose_builder()
    except MissingError as error:
        return None, str(error)
    say(f"building with {builder.name} {builder.version}")
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        report = build_engine(path, Path(folder) / PLAN_FILE, BuildOptions(shapes=shapes))
    return coverage(model, report.layers, shapes), f"{builder.name} {builder.version}"


def _print(fixed: Fixed, found: Coverage | None, builder: str, failing: Sequence[Finding]) -> None:
    for what, count in fixed.done.items():
        show(f"fixed: {count} x {what}")
    if not fixed.done:
        is_taken = not failing and (found is None or not found.fallbacks)
        click.echo("fixed: nothing, TensorRT takes it as it is" if is_taken else "fixed: nothing")
    for what in fixed.left:
        show(f"left: {what}")
    for finding in failing:
        show(f"left: {finding.node}: {finding.message} [{finding.rule}]")
    click.echo(f"proof: {fixed.equality} (ONNX Runtime, {counted(fixed.equality.runs, 'random image')})")
    if found is None:
        show(f"built: no, {builder}")
        return
    share = found.int8_share()
    click.echo(
        f"built: {builder}: int8 in {found.int8_layers} of {counted(found.quantized_layers, 'quantized layer')}{share}"
    )
