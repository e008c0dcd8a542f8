"""Options that several verbs share, and what opens an engine as they ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from odm_deploy.errors import UsageError
from odm_deploy.terminal import say

if TYPE_CHECKING:
    from odm_deploy.engine import Engine
    from odm_deploy.imaging.pixels import Bits

Command = TypeVar("Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


def group(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def refuse_options(names: Sequence[str], source: Path, why: str, fix: str) -> None:
    """Refuse options of the running command, by their parameters' names, that say nothing of `source`.

    Raises:
        UsageError: one of them was given.
    """
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{', '.join(given)} with {source}", why=why, fix=fix)


def key_values(option: str) -> Callable[..., dict[str, str]]:
    """A click callback that turns repeated KEY=VALUE texts into a dict."""

    def parse(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
        pairs = [text.partition("=") for text in texts]
        if wrong := [
            text for text, (key, sign, value) in zip(texts, pairs, strict=True) if not (key and sign and value)
        ]:
            raise UsageError(f"{option} {wrong[0]} is not KEY=VALUE")
        return {key: value for key, _, value in pairs}

    return parse


def keep_input(source: Path | str, output: Path) -> None:
    """Refuse to write over what is read, which would be lost.

    Raises:
        UsageError: both are the same file, whatever they are called.
    """
    if output.is_file() and Path(source).exists() and output.samefile(source):
        raise UsageError(f"cannot write {output}", why="it is the input, which would be lost", fix="name another file")


def _settings(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in key_values("--set")(context, parameter, texts).items()}


def _plain(text: str) -> Any:
    """`0.1`, `8`, `true` as the value they spell, anything else as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _trust(context: click.Context, _: click.Parameter, paths: tuple[str, ...]) -> None:
    """Permit networks of other people's code for as long as the command runs."""
    if paths:
        from odm_deploy.networks.trusted_builders import trusting

        context.with_resource(trusting(*paths))


def completing(*names: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """`shell_complete` of an option that takes these names, among other things or in any case."""
    return lambda _context, _parameter, begun: [name for name in names if name.startswith(begun.lower())]


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="PKG.MODULE:NAME",
    expose_value=False,
    callback=_trust,
    help="Allow a model.pt to be built by this class or function; repeatable. Importing it runs its code.",
)
weights_options = group(
    click.option(
        "--network",
        metavar="NAME",
        shell_complete=completing("edsr", "rdn", "srresnet", "swinir", "spandrel"),
        help="Architecture of float weights, where they do not say: edsr, rdn, srresnet, swinir, spandrel; or your "
        "own, package.module:Name, whose code is then run.",
    ),
    click.option("--scale", type=click.IntRange(min=1), help="Upscaling factor.  [default: what the weights show]"),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_settings,
        help="What float weights do not show: a hyper-parameter of the network; input_range=1 or 255 (white), "
        "channel_order=bgr.  [default: found by trying]",
    ),
)
"""What float weights are of; arguments of `load_network`."""

threads_option = click.option("--threads", type=int, help="CPU threads.  [default: one a physical core]")

RUNTIMES = (
    "tensorrt",
    "tensorrt_rtx",
    "openvino",
    "onnxruntime",
    "onnxruntime_cuda",
    "onnxruntime_tensorrt",
    "onnxruntime_rtx",
)
"""What `--runtime` takes; `runtimes.registry.RUNTIME_NAMES`, which would take long to import."""


def runtime_option(
    text: str = "Where to run", *, default: str = "the fastest that works"
) -> Callable[[Command], Command]:
    """`--runtime`: what it is of, and what is taken without it."""
    return click.option(
        "--runtime",
        metavar="NAME",
        shell_complete=completing(*RUNTIMES),
        help=f"{text}: {', '.join(RUNTIMES)}.  [default: {default}]",
    )


images_option = click.option("--images", type=_PATH, required=True, help="Input images: a folder, file or glob.")

proof_options = group(
    click.option("--against", type=_PATH, help="The model.pt.  [default: the one the bundle names]"),
    click.option("--truth", type=_PATH, help="Ground truth.  [default: HR next to LR_bicubic/X4]"),
    runtime_option(default="TensorRT on a GPU, else onnxruntime"),
    click.option("--max-images", type=click.IntRange(1), help="Stop after this many images."),
    threads_option,
    trust_option,
)
"""What is proven, and with what; fields of `VerifyOptions`."""

running_options = group(
    click.option("--model", "bundle", type=_PATH, required=True, help="A bundle."),
    runtime_option(),
    threads_option,
    click.option("--tile", type=click.IntRange(0), help="Tile size in input pixels; 0: whole.  [default: by memory]"),
)
"""What upscales; `open_engine` takes them."""


def say_what_is_not_read(source: Path | str) -> list[Path]:
    """The images of a folder or pattern in formats that are not read, and a line that names them."""
    from odm_deploy.imaging.reading import list_other_images

    others = list_other_images(source)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        names = ", ".join(path.name for path in others[:3])
        say(f"skipped {names}{more}: such files are not read; convert them to PNG")
    return others


def open_engine(
    bundle: Path, runtime: str | None, threads: int | None, tile: int | None, bits: Bits | None = None
) -> Engine:
    """Open a bundle, and say which runtimes were passed over. Raises as `Engine.open`, also for a file outside one."""
    from odm_deploy.bundle import Bundle
    from odm_deploy.engine import Engine
    from odm_deploy.runtimes.options import RuntimeOptions

    opened = Bundle.open(bundle)
    opened.require_manifest()
    engine = Engine.open(opened, runtime, RuntimeOptions(threads=threads), tile=tile, bits=bits)
    for reason in engine.runtime.passed_over:
        say(f"passed over: {reason}")
    return engine


def precision_option(text: str) -> Callable[[Command], Command]:
    """`--precision` of what is not int8, with `text` as its help."""

    def parse(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        if value == "f32":
            say("--precision f32 is spelled fp32 now")
            return "fp32"
        if value not in ("fp32", "bf16"):
            raise UsageError(f"--precision {value}", fix="use fp32 or bf16")
        return value

    return click.option(
        "--precision", metavar="[fp32|bf16]", callback=parse, default="fp32", show_default=True, help=text
    )
