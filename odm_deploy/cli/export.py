"""`odm-deploy export model.pt`: the bundle of a quantized model."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.output import emit_json, json_option, say
from odm_deploy.cli.trust import trust_option

if TYPE_CHECKING:
    from odm_deploy.runtimes.build import BuildProgress
    from odm_deploy.runtimes.profiles import ShapeProfile


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle directory. [default: MODEL without .pt]")
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
@click.option("--engine/--no-engine", default=True, help="Build engine.plan, where a builder is installed.")
@click.option("--builder", help="tensorrt or tensorrt_rtx. [default: what is installed]")
@click.option(
    "--shapes",
    default="1080p",
    show_default=True,
    help="Input sizes of the engine: 540p, 720p, 1080p, tile, one NxCxHxW, or min:opt:max.",
)
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds a build may take.")
@click.option("--workspace", "workspace_mib", type=int, help="MiB of scratch memory a kernel may use.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0: fast build, 5: fast engine.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    help="File of kernel timings, read and rewritten, or a folder with one for each version and GPU.",
)
@click.option("--tf32/--no-tf32", default=True, help="Let float32 convolutions round to 11 significant bits.")
@click.option("--compute-capability", "targets", multiple=True, help="GPU to build for, like SM86; TensorRT-RTX only.")
@click.option("--version-compatible", is_flag=True, help="Let later TensorRTs of the same major version load the plan.")
@click.option(
    "--hardware",
    type=click.Choice(["this", "same-capability", "ampere+"]),
    default="this",
    show_default=True,
    help="GPUs that are to run a plan of tensorrt.",
)
@click.option(
    "--triton", type=click.Path(path_type=Path), help="Also write the bundle into this Triton model repository."
)
@trust_option
@json_option
def command(model: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Lower MODEL (a model.pt) to a bundle: model.onnx, manifest.json and engine.plan.

    The ONNX file computes exactly what the reference model computes, as integers, on TensorRT 10 and 11, TensorRT-RTX,
    OpenVINO and ONNX Runtime. Low-bit models run at int8 speed: no NVIDIA GPU has 2- to 7-bit convolutions.
    """
    from odm_deploy.errors import UsageError

    if options["layout"] == "nhwc" and options["io"] != "uint8":
        raise UsageError("--layout nhwc with --io float32", why="float images are NCHW", fix="add --io uint8")
    if options["order"] == "bgr" and options["io"] != "uint8":
        raise UsageError("--order bgr with --io float32", why="float images are RGB", fix="add --io uint8")
    _require_torch()
    from odm_deploy.checkpoint import load_model
    from odm_deploy.lowering.bundle import EngineOptions, write_bundle
    from odm_deploy.lowering.lower import LoweringOptions
    from odm_deploy.runtimes.profiles import parse_profile

    engine = EngineOptions(
        wanted=options["engine"],
        flavour=options["builder"],
        profile=parse_profile(options["shapes"]),
        timeout_s=options["timeout_s"],
        workspace_mib=options["workspace_mib"],
        optimization_level=options["optimization_level"],
        timing_cache=options["timing_cache"],
        tf32=options["tf32"],
        compute_capabilities=options["targets"],
        version_compatible=options["version_compatible"],
        hardware=options["hardware"],
    )
    lowering = LoweringOptions(options["precision"], options["io"], options["layout"], options["order"])
    quantized = load_model(model)
    with _build_progress() as on_progress:
        bundle = write_bundle(quantized, model, out or model.with_suffix(""), lowering, engine, say, on_progress)
    served = [] if options["triton"] is None else _write_triton(bundle.folder, options["triton"], engine.profile)
    if as_json:
        emit_json(
            {
                "bundle": str(bundle.folder),
                "onnx": str(bundle.onnx),
                "plan": None if bundle.plan is None else str(bundle.plan),
                "manifest": str(bundle.manifest),
                "triton": [str(folder) for folder in served],
            }
        )
    else:
        say(f"wrote {bundle.folder}: {', '.join(sorted(path.name for path in bundle.folder.iterdir()))}")


def _write_triton(bundle: Path, repository: Path, profile: ShapeProfile) -> list[Path]:
    from odm_deploy.serving.triton import write_triton_models

    folders = write_triton_models(bundle, repository, profile, say=say)
    for folder in folders:
        say(f"wrote {folder}")
    return folders


def _require_torch() -> None:
    """Say in one line what is missing when the package was installed for running bundles only."""
    import importlib.util

    from odm_deploy.errors import MissingError

    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            "cannot export here", why=f"{' and '.join(missing)} not installed", fix="pip install 'odm-deploy[export]'"
        )


@contextmanager
def _build_progress() -> Generator[Callable[[BuildProgress], None]]:
    """Show the builder's phases as bars on stderr, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(event: BuildProgress) -> None:
            if event.phase not in tasks:
                tasks[event.phase] = bars.add_task("  " * event.depth + event.phase, total=event.steps)
            bars.update(tasks[event.phase], completed=event.step)

        yield show
