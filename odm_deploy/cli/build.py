"""`odm-deploy build bundle`: the engine of a bundle, for the machine it is on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.engine_options import build_progress, engine_options, to_build_options, write_triton
from odm_deploy.terminal import emit_json, json_option, say


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--shapes",
    help="Input sizes: 540p, 720p, 1080p, tile, one NxCxHxW, or min:opt:max.  [default: as before, or 1080p]",
)
@engine_options
@json_option
def command(bundle: Path, shapes: str | None, as_json: bool, **options: Any) -> None:
    """Build engine.plan of BUNDLE for this machine, in place of the one it has.

    For bundles from elsewhere: a plan runs on the TensorRT that built it, and mostly on its kind of GPU only. Neither
    torch nor the model.pt is needed.
    """
    from odm_deploy.building.bundle_engine import rebuild_engine, shapes_of
    from odm_deploy.bundle.manifest import PLAN_FILE
    from odm_deploy.graphs.input_shapes import PRESETS, parse_shapes

    sizes = parse_shapes(shapes) if shapes else shapes_of(bundle) or PRESETS["1080p"]
    with build_progress() as on_progress:
        manifest = rebuild_engine(bundle, to_build_options(options, sizes), say, on_progress)
    served = write_triton(bundle, options["triton"], sizes)
    plan = bundle / PLAN_FILE
    if as_json:
        engine = dict(manifest.engine or {})
        engine.pop("layers", None)
        emit_json({"plan": str(plan), "engine": engine, "triton": [str(folder) for folder in served]})
    else:
        say(f"wrote {plan}: {plan.stat().st_size / 2**20:.1f} MiB")
