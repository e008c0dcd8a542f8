"""`python -m training RECIPE.toml --out DIR`: train a network for few bits and write its model.pt."""

from __future__ import annotations

import os
from pathlib import Path

import click

from odm_deploy.errors import UsageError
from odm_deploy.terminal import run


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
    help="Train on an NVIDIA GPU: run.device=cuda and, for one process, run.cuda_graphs=true; --set overrides either.",
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
    from training.distributed import join_world
    from training.loop.run import train
    from training.recipe_files import load_recipe, load_run

    if recipe is None and not finish:
        raise UsageError("no recipe named", fix="name one, e.g. training/recipes/quickstart.toml")
    settings_of = [*(gpu_settings() if gpu else []), *overrides]
    settings = load_recipe(recipe, settings_of) if recipe else load_run(out, settings_of)
    with join_world(settings.run.device) as world:
        train(settings, out, world, finish=finish, tensorboard=tensorboard)


def gpu_settings() -> list[str]:
    """What `--gpu` stands for. Recording steps made them 3.7 times as fast (docs/measurements/gpu.md)."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return ["run.device=cuda", *(["run.cuda_graphs=true"] if alone else [])]


if __name__ == "__main__":
    run(command, "python -m training")
