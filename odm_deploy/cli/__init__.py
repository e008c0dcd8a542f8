"""The `odm-deploy` command: one file a verb, each imported only when it is called.

`odm-deploy --help` therefore answers in milliseconds and imports no torch.
"""

from __future__ import annotations

import importlib

import click

from odm_deploy.errors import UsageError
from odm_deploy.terminal import one_line, run
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


class _LazyGroup(click.Group):
    """A click group that imports a verb's module only when that verb runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"odm_deploy.cli.{cmd_name}")
        command: click.Command = module.command
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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="odm-deploy")
def odm_deploy() -> None:
    """Put quantized super-resolution networks into production, and prove that they are what was trained.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 a gate was not met, 4 something is missing on this machine.
    """


def main() -> None:
    """Entry point of `odm-deploy`."""
    run(odm_deploy, "odm-deploy")
