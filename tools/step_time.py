"""Time one training step of several recipes side by side: interleaved in one process, medians, ratios to the first.

    python tools/step_time.py training/recipes/compare/edsr_x4_odm_w2a2.toml \
        --variant method.mismatch_weight=0.0 --variant method.mismatch_every=2

A step is forward, losses, gradients and Adam, on the same patches for all. Methods that do something on every k-th step
only are timed over whole periods, because a round is `--round` consecutive steps of each. On a GPU, say:

    python tools/step_time.py RECIPES --set run.device=cuda --variant run.compile=true \
        --variant run.compile=true,run.cuda_graphs=true
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from toolbox import COMMAND, load_recipes, set_option, variant_option

from odm_deploy.terminal import emit_json, json_option, run, say
from training.acceleration import compile_quantizers, use_tf32
from training.distributed import World
from training.loop.preparation import (
    Images,
    build_gradient_step,
    build_model,
    calibrate,
    load_float_network,
    load_images,
)
from training.loop.step import build_optimizer, follow
from training.methods.registry import build_method
from training.recipe import Recipe


@click.command(context_settings=COMMAND)
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Turns of every recipe.")
@click.option("--round", "steps", default=2, show_default=True, type=click.IntRange(min=1), help="Steps a turn.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads.")
@variant_option
@set_option
@json_option
def command(
    recipes: tuple[Path, ...],
    rounds: int,
    steps: int,
    threads: int,
    variants: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time a training step of RECIPES; ratios are to the first."""
    torch.set_num_threads(threads)
    loaded = load_recipes(recipes, overrides, variants)
    images = load_images(next(iter(loaded.values())))
    steppers = {name: stepper(recipe, images) for name, recipe in loaded.items()}
    for step in steppers.values():
        for index in range(steps):
            step(index)
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(rounds):
        say(f"turn {turn + 1}/{rounds}")
        for name, step in steppers.items():
            start = time.perf_counter()
            for index in range(steps):
                step(turn * steps + index)
            seconds[name].append((time.perf_counter() - start) / steps)
    first = next(iter(seconds))
    rows = [
        {
            "recipe": name,
            "seconds_per_step": statistics.median(values),
            "steps_per_second": 1.0 / statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, seconds[first], strict=True)),
        }
        for name, values in seconds.items()
    ]
    if as_json:
        emit_json({"threads": threads, "steps": rows})
        return
    for row in rows:
        click.echo(
            f"{row['recipe']:60} {row['seconds_per_step']:.4f} s  {row['steps_per_second']:.2f}/s  {row['ratio']:.2f}x"
        )


def stepper(recipe: Recipe, images: Images) -> Callable[[int], None]:
    """A function that makes the optimizer step number `iteration` of a freshly calibrated model."""
    method, network = build_method(recipe.method), load_float_network(recipe)
    model = build_model(recipe, method, network)
    method.watch(model, network)
    calibrate(model, method, images, recipe)
    use_tf32(recipe.run.tf32)
    if recipe.run.compile:
        compile_quantizers(model)
    optimizer: Any = build_optimizer(model, recipe.optimizer)
    device = recipe.run.device
    gradient_step = build_gradient_step(recipe, model, method, World())

    def step(iteration: int) -> None:
        low, high = (part.to(device) for part in images.pool.batch(iteration, recipe.run.batch))
        result = gradient_step(low, high, iteration)
        follow(model, optimizer, result.combined)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    run(command, "step_time")
