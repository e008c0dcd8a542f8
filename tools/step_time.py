"""Time one training step of several recipes side by side: interleaved in one process, medians, ratios to the first.

    python tools/step_time.py training/recipes/compare/edsr_x4_odm_w2a2.toml \
        --variant method.mismatch_weight=0.0 --variant method.mismatch_every=2

A step is what the training loop does in one: forward, losses, gradients, the look at whether they are finite, Adam, the
moving average. Batches are made ahead by another thread, as in the loop; how long one takes to make is said beside.
Methods that do something on every k-th step only are timed over whole periods, because a round is `--round`
consecutive steps of each, between two waits for the device. A variant that fails says why and ends no other. On a GPU:

    python tools/step_time.py RECIPES --set run.device=cuda --rounds 8 --round 20 --variant run.compile=true \
        --variant run.compile=true,run.cuda_graphs=true --output steps.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from toolbox import COMMAND, load_recipes, set_option, variant_option, write_json

from odm_deploy.errors import InputError
from odm_deploy.terminal import emit_json, json_option, run, say
from training.acceleration import accelerate, use_tf32
from training.distributed import World
from training.loop.feeding import feed
from training.loop.outcome import Outcome
from training.loop.preparation import (
    Images,
    build_gradient_step,
    build_model,
    calibrate,
    load_float_network,
    load_images,
)
from training.loop.step import MovingAverage, build_optimizer, follow
from training.methods.registry import build_method
from training.recipe import Recipe


@click.command(context_settings=COMMAND)
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Turns of every recipe.")
@click.option("--round", "steps", default=2, show_default=True, type=click.IntRange(min=1), help="Steps a turn.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep what is known so far in this JSON file.")
@variant_option
@set_option
@json_option
def command(
    recipes: tuple[Path, ...],
    rounds: int,
    steps: int,
    threads: int,
    output: Path | None,
    variants: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time a training step of RECIPES; ratios are to the first."""
    torch.set_num_threads(threads)
    loaded = load_recipes(recipes, overrides, variants)
    images = load_images(next(iter(loaded.values())))
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    failed: dict[str, str] = {}
    made: dict[str, float] = {}
    running: dict[str, Stepper] = {}

    def document() -> dict[str, Any]:
        devices = sorted({_device_name(recipe.run.device) for recipe in loaded.values()})
        about = {"threads": threads, "torch": torch.__version__, "device": ", ".join(devices)}
        return {**about, "steps": rows(seconds, made, failed)}

    with ExitStack() as ending:
        for turn in range(rounds):
            for name, recipe in loaded.items():
                if name in failed:
                    continue
                say(f"turn {turn + 1}/{rounds}: {name}")
                try:
                    if name not in running:
                        made[name] = _seconds_per_batch(recipe, images)
                        running[name] = ending.enter_context(closing(Stepper(recipe, images, steps * (rounds + 1))))
                        running[name].take(steps)
                    seconds[name].append(running[name].take(steps) / steps)
                except Exception as error:  # compilers and drivers raise anything
                    failed[name] = _first_line(error)
                    say(f"{name} failed: {failed[name]}")
                if output is not None:
                    write_json(output, document())
    if as_json:
        emit_json(document())
    else:
        for row in document()["steps"]:
            click.echo(line(row))
    if len(failed) == len(loaded):
        raise InputError("nothing could be timed", why=next(iter(failed.values())))


def rows(
    seconds: Mapping[str, Sequence[float]], made: Mapping[str, float], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for every recipe that was timed or failed; ratios are to the first one, if that was timed."""
    first = next(iter(seconds.values()))
    result: list[dict[str, Any]] = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"recipe": name}
        if values:
            row["seconds_per_step"] = statistics.median(values)
            row["steps_per_second"] = 1.0 / row["seconds_per_step"]
            row["seconds_per_batch_made"] = made[name]
            row["turns"] = len(values)
        # Turns of the same round met the same machine; the last round may be under way.
        ratios = [a / b for a, b in zip(values, first, strict=False)]
        if ratios:
            row["ratio"] = statistics.median(ratios)
        if name in failed:
            row["failed"] = failed[name]
        if len(row) > 1:
            result.append(row)
    return result


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    text = f"{row['recipe']:60}"
    if "seconds_per_step" in row:
        text += f" {row['seconds_per_step']:.4f} s  {row['steps_per_second']:.2f}/s"
        text += f"  {row['ratio']:.2f}x" if "ratio" in row else ""
        text += f"  (a batch is made in {row['seconds_per_batch_made']:.4f} s)"
    return text + (f" failed: {row['failed']}" if "failed" in row else "")


class Stepper:
    """Makes the steps of a freshly calibrated model, at most `most` of them; close it to end its thread."""

    def __init__(self, recipe: Recipe, images: Images, most: int) -> None:
        method, network = build_method(recipe.method), load_float_network(recipe)
        self._model = build_model(recipe, method, network)
        method.watch(self._model, network)
        calibrate(self._model, method, images, recipe)
        note = accelerate(self._model, recipe.run)
        if note:
            say(note)
        self._optimizer = build_optimizer(self._model, recipe.optimizer, method.at_weights_rate)
        self._average = MovingAverage(self._model, recipe.optimizer.ema_decay)
        self._gradient_step = build_gradient_step(recipe, self._model, method, World())
        self._batches = feed(images.pool, recipe.run, range(most), World())
        self._on_gpu, self._tf32 = recipe.run.device == "cuda", recipe.run.tf32
        self._iteration = 0

    def take(self, steps: int) -> float:
        """Make so many steps; returns the seconds from an idle device to an idle device."""
        if self._on_gpu:
            use_tf32(self._tf32)  # one switch for all variants of this process
        self._wait()
        start = time.perf_counter()
        before: Outcome | None = None
        for low, high in islice(self._batches, steps):
            result = self._gradient_step(low, high, self._iteration)
            outcome = Outcome.of(self._iteration, low, result)
            follow(self._model, self._optimizer, result.combined, outcome.broken)
            self._average.update(self._model, self._iteration)
            self._iteration += 1
            if before is not None:
                before.check(self._model, Path("last.pt"))
            before = outcome
        self._wait()
        return time.perf_counter() - start

    def close(self) -> None:
        """End the thread that makes batches."""
        self._batches.close()

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _seconds_per_batch(recipe: Recipe, images: Images, count: int = 5) -> float:
    """How long the loop's other thread takes to make one batch, with nothing else to do; the median of `count`."""
    times: list[float] = []
    for iteration in range(count):
        start = time.perf_counter()
        images.pool.batch(iteration, recipe.run.batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    run(command, "step_time")
