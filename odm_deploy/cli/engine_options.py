"""The options of every verb that builds an engine, and its progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.options import group

if TYPE_CHECKING:
    from odm_deploy.building.options import BuildOptions
    from odm_deploy.building.parent import BuildProgress
    from odm_deploy.graphs.input_shapes import InputShapes

engine_options = group(
    click.option("--builder", help="tensorrt or tensorrt_rtx.  [default: what is installed]"),
    click.option(
        "--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds a build may take."
    ),
    click.option("--workspace", "workspace_mib", type=int, help="MiB of scratch memory a kernel may use."),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="0: fast build, 5: fast engine."),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        help="File of kernel timings, read and rewritten, or a folder with one for each version and GPU.",
    ),
    click.option("--tf32/--no-tf32", default=True, help="Let float32 convolutions round to 11 significant bits."),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        help="GPU to build for, like SM86; tensorrt_rtx only.",
    ),
    click.option(
        "--version-compatible", is_flag=True, help="Let later TensorRTs of the same major version load the plan."
    ),
    click.option(
        "--hardware",
        type=click.Choice(["this", "same-capability", "ampere+"]),
        default="this",
        show_default=True,
        help="GPUs that are to run a plan of tensorrt.",
    ),
    click.option(
        "--triton", type=click.Path(path_type=Path), help="Also write the bundle into this Triton model repository."
    ),
)
"""What every build takes; `to_build_options` reads them."""


def to_build_options(options: Mapping[str, Any], shapes: InputShapes) -> BuildOptions:
    """What the options of `engine_options` ask for, for an engine that takes these shapes."""
    from odm_deploy.building.options import BuildOptions

    named = {field.name: options[field.name] for field in fields(BuildOptions) if field.name != "shapes"}
    return BuildOptions(shapes=shapes, **named)


def write_triton(bundle: Path, repository: Path | None, shapes: InputShapes) -> list[Path]:
    """Write a bundle into a Triton model repository, where one was named; the folders of its models."""
    if repository is None:
        return []
    from odm_deploy.serving.triton import write_triton_models
    from odm_deploy.terminal import say

    folders = write_triton_models(bundle, repository, shapes, say=say)
    for folder in folders:
        say(f"wrote {folder}")
    return folders


@contextmanager
def build_progress() -> Generator[Callable[[BuildProgress], None]]:
    """Show the builder's phases as bars on stderr, where stderr is a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    bars = Progress(console=console, disable=not console.is_terminal, transient=True)
    tasks: dict[str, TaskID] = {}

    def show(event: BuildProgress) -> None:
        # Not before: what comes first may have a bar of its own.
        bars.start()
        if event.phase not in tasks:
            tasks[event.phase] = bars.add_task(escape("  " * event.depth + event.phase), total=event.steps)
        bars.update(tasks[event.phase], completed=event.step)

    try:
        yield show
    finally:
        bars.stop()
