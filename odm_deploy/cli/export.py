"""`odm-deploy export model.pt`: the bundle of a quantized model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.engine_options import build_progress, engine_options, to_build_options, write_triton
from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import trust_option
from odm_deploy.collecting import collecting_rarely
from odm_deploy.terminal import emit_json, json_option, progress_alone, say


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Bundle directory; a bundle that is there is replaced.  [default: MODEL without .pt]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="What is not quantized; bf16 for TensorRT only.",
)
@click.option(
    "--io", type=click.Choice(["float32", "uint8"]), default="float32", show_default=True, help="Type of the images."
)
@click.option(
    "--layout", type=click.Choice(["nchw", "nhwc"]), default="nchw", show_default=True, help="Axes of uint8 images."
)
@click.option(
    "--order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Channels of uint8 images."
)
@click.option(
    "--target",
    type=click.Choice(["tensorrt", "cpu", "auto"]),
    default="auto",
    show_default=True,
    help="Whose dialect model.onnx is in; all runtimes run both. auto: TensorRT's, and for runtimes on CPUs a "
    "model.cpu.onnx beside it (not in half precision).",
)
@click.option("--engine/--no-engine", default=True, help="Build engine.plan, where a builder is installed.")
@click.option(
    "--shapes",
    default="1080p",
    show_default=True,
    help="Input sizes of the engine: 540p, 720p, 1080p, tile, one NxCxHxW, or min:opt:max.",
)
@engine_options
@trust_option
@json_option
@collecting_rarely()
def command(model: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Lower MODEL (a model.pt) to a bundle: model.onnx, model.cpu.onnx, manifest.json and engine.plan.

    The ONNX files compute exactly what the reference model computes, as integers, on TensorRT 10 and 11, TensorRT-RTX,
    OpenVINO and ONNX Runtime. Low-bit models run at int8 speed: no NVIDIA GPU has 2- to 7-bit convolutions.
    """
    from odm_deploy.files import require_file
    from odm_deploy.graphs.input_shapes import parse_shapes
    from odm_deploy.kinds_of_files import MODEL_WANTED

    require_file(model, MODEL_WANTED)
    with slow_imports():
        from odm_deploy.bundle.manifest import MANIFEST_FILE
        from odm_deploy.checkpoint import load_model
        from odm_deploy.export import write_bundle
        from odm_deploy.lowering.lower import LoweringOptions

    shapes = parse_shapes(options["shapes"])
    chosen = options["target"]
    engine = to_build_options(options, shapes) if options["engine"] and chosen != "cpu" else None
    target = "cpu" if chosen == "cpu" else "tensorrt"
    lowering = LoweringOptions(options["precision"], options["io"], options["layout"], options["order"], target)
    for_cpus = chosen == "auto" and lowering.precision == "fp32"
    quantized = load_model(model)
    out = out or model.with_suffix("")
    with build_progress() as on_progress:
        bundle = write_bundle(
            quantized, model, out, lowering, engine, say, on_progress, for_cpus=for_cpus, track=progress_alone
        )
    folder = bundle.path
    served = write_triton(folder, options["triton"], shapes)
    if as_json:
        emit_json(
            {
                "bundle": str(folder),
                "onnx": str(bundle.onnx_path),
                "plan": None if bundle.plan_path is None else str(bundle.plan_path),
                "manifest": str(folder / MANIFEST_FILE),
                "triton": [str(folder) for folder in served],
            }
        )
    else:
        say(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
