"""The `odm-deploy` command: one file a verb, each imported only when it is called.

`odm-deploy --help` therefore answers in milliseconds and imports no torch.
"""

from __future__ import annotations

import importlib
from inspect import cleandoc

import click

from odm_deploy.errors import UsageError
from odm_deploy.terminal import one_line
from odm_deploy.version import __version__

# verb -> the line `--help` shows. The verb's own file holds everything else.
VERBS = {
    "quantize": "Quantize float weights on a folder of images: model.pt, and straight on to an engine.",
    "sensitivity": "Show what quantizing each layer costs at the output.",
    "export": "Lower a model.pt to a bundle: QDQ ONNX, manifest, TensorRT engine.",
    "build": "Build the TensorRT engine of a bundle for this machine.",
    "verify": "Prove on real images that a runtime computes what the reference computes.",
    "bench": "Time a bundle on a runtime, next to its float twin.",
    "inspect": "Say which layers really run as int8, and why the others do not.",
    "lint": "Find what TensorRT would silently run as float, or refuse, in any QDQ ONNX.",
    "eval": "Measure PSNR and SSIM of a model or bundle on a benchmark set.",
    "report": "Write one page about a bundle: verdict, quality, speed, layers, crops.",
    "upscale": "Upscale images, folders, videos or piped frames.",
    "serve": "Upscale over HTTP, with a page to try a bundle on.",
    "doctor": "Show what is installed here and what it allows.",
}


EXAMPLES = {
    "quantize": "quantize edsr_baseline_x4.pt --images photos/ --export bundle",
    "sensitivity": "sensitivity edsr_baseline_x4.pt --images photos/",
    "export": "export model.pt -o bundle",
    "build": "build bundle --shapes 720p",
    "verify": "verify bundle --images photo.png",
    "bench": "bench bundle --size 320x180 --seconds 2",
    "inspect": "inspect bundle",
    "lint": "lint model.onnx",
    "eval": "eval bundle --dataset Set5",
    "report": "report bundle --images photos/ --quick -o page.html",
    "upscale": "upscale photo.png large.png --model bundle",
    "serve": "serve --model bundle",
    "doctor": "doctor",
}
"""What each verb's help begins with."""


class _LazyGroup(click.Group):
    """A click group that imports a verb's module only when that verb runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            # New versions of click make an error of the help, old ones a success: on one line, it could not be read.
            click.echo(ctx.get_help())
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"odm_deploy.cli.{cmd_name}")
        command: click.Command = module.command
        example = f"\b\n$ odm-deploy {EXAMPLES[cmd_name]}\n\n"
        if command.help and not command.help.startswith(example):
            command.help = example + cleandoc(command.help)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS:
            from difflib import get_close_matches

            close = get_close_matches(name, VERBS, n=1)
            fix = f"did you mean {close[0]}?" if close else f"use {', '.join(VERBS)}"
            raise UsageError(one_line(f"there is no command {name}"), fix=fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


_HELP = """Put quantized super-resolution networks into production, and prove that they are what was trained.

\b
$ odm-deploy quantize weights.pth --images photos/ --export bundle
$ odm-deploy upscale photo.png large.png --model bundle

Exit codes: 0 ok, 1 failed, 2 usage, 3 a gate was not met, 4 something is missing on this machine, 130 interrupted.
"""


@click.group(
    cls=_LazyGroup,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, prog_name="odm-deploy")
def odm_deploy() -> None:
    """What `--help` says is `_HELP`."""
