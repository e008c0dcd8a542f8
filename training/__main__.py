"""`python -m training RECIPE.toml --out DIR`: train a network for few bits and write its model.pt."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from odm_deploy.cli.imports import slow_imports
from odm_deploy.errors import UsageError
from odm_deploy.terminal import run

if TYPE_CHECKING:
    from training.recipe import Recipe


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder; created if missing.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of RECIPE; repeatable.")
@click.option(
    "--finish",
    is_flag=True,
    help="Freeze what DIR holds now into model.pt instead of training on; the recipe is then the run's own.",
)
@click.option(
    "--gpu",
    is_flag=True,
    help="Train on an NVIDIA GPU: run.device=cuda and, for one process, run.cuda_graphs=true; in long runs, "
    "run.compile=true, too. --set overrides each.",
)
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard, too, into DIR/tensorboard.")
def command(
    recipe: Path | None, out: Path, overrides: tuple[str, ...], finish: bool, gpu: bool, tensorboard: bool
) -> None:
    """Train the network of RECIPE for few bits.

    It may be interrupted at any time: the same command resumes, and ends with the same bits. On several GPUs or
    processes: torchrun --nproc-per-node N -m training RECIPE.toml --out DIR

    \b
    DIR/config.json   the resolved recipe
    DIR/log.jsonl     losses, conflicts of gradients, validations, ranges (tools/plot_training.py draws them)
    DIR/last.pt       state to resume from
    DIR/model.pt      the frozen result, for `odm-deploy export`

    \b
    --set bits=w2a2             width of the body: w2a2 to w8a8 (quantization.body)
    --set method=lsq            another method (method.name): odm_v2, odm_v1, pams, ddtb, daq, quantsr, lsq, minmax,
                                float
    --set network=rdn           another network (network.name); bring its weights with network.weights
    --set run.iterations=200    any other value by section and key: network, quantization, method, data, optimizer,
                                run; training/recipe.py says what each is, training/methods what a method takes
    """  # noqa: D301 - click wants the character itself
    with slow_imports():
        from training.distributed import join_world
        from training.loop.run import train
        from training.recipe_files import load_recipe, load_run

    if recipe is None and not finish:
        raise UsageError("no recipe named", fix="name one, e.g. training/recipes/quickstart.toml")

    def settings_with(more: Sequence[str]) -> Recipe:
        return load_recipe(recipe, [*more, *overrides]) if recipe else load_run(out, [*more, *overrides])

    settings = settings_with([])
    if gpu:
        settings = settings_with(gpu_settings(settings.run.iterations))
    with join_world(settings.run.device) as world:
        train(settings, out, world, finish=finish, tensorboard=tensorboard)


# A minute of compiling is earned back after so many steps (docs/measurements/gpu.md).
_WORTH_COMPILING = 10_000


def gpu_settings(iterations: int) -> list[str]:
    """What `--gpu` stands for in a run of so many steps.

    Recorded steps are five times as fast, and with compiled quantizers seven times. bfloat16 is left to the recipe: it
    changes what is computed, for another tenth.
    """
    settings = ["run.device=cuda", "run.channels_last=true"]
    if os.environ.get("WORLD_SIZE", "1") == "1":
        settings.append("run.cuda_graphs=true")
    if iterations >= _WORTH_COMPILING and importlib.util.find_spec("triton") is not None:
        settings.append("run.compile=true")
    return settings


if __name__ == "__main__":
    run(command, "python -m training")
