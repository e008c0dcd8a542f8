"""The training loop. Read it top to bottom: `train` is the whole run, `_Run.step` one iteration."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from odm_deploy.checkpoint import file_sha256, save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.pipeline import map_ahead
from odm_deploy.version import __version__
from training.acceleration import compile_quantizers, use_tf32
from training.config import to_tables
from training.distributed import World
from training.loop.diagnostics import logged, ranges
from training.loop.divergence import check_finite, first_broken_layer
from training.loop.evaluate import validate
from training.loop.journal import Journal, open_board
from training.loop.optimizer import MovingAverage, build_optimizer, rate_factor, set_rates
from training.loop.preparation import (
    Images,
    build_gradient_step,
    build_model,
    calibrate,
    claim_folder,
    load_float_network,
    load_images,
)
from training.loop.state import Progress, load_state, save_state
from training.methods.base import Method
from training.methods.registry import build_method
from training.model import TrainableModel
from training.recipe import Recipe
from training.recipe_files import expand_places


def train(
    recipe: Recipe, folder: Path, world: World, *, finish: bool = False, tensorboard: bool = False
) -> TrainableModel:
    """Run a recipe to its end, from wherever `folder` says it stands.

    Leaves in `folder`: config.json, log.jsonl, last.pt (resumable state), and model.pt (the frozen result; for a float
    run weights.pt) once all iterations are done.

    Args:
        recipe: what to train, and how.
        folder: the run's folder.
        world: the processes that share the batch.
        finish: freeze what `folder` holds now instead of training on.
        tensorboard: log for TensorBoard, too, into `folder`/tensorboard.

    Returns:
        The model that was frozen: with the parameters of the best validation, or the last ones.

    Raises:
        InputError: unusable images or weights; a loss that is no longer finite.
        UsageError: a folder that belongs to another run; `finish` without a state to freeze.
        MissingError: `tensorboard` where it is not installed.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    method = build_method(recipe.method)
    if finish and not (folder / "last.pt").exists():
        raise UsageError(
            f"nothing to finish in {folder}", why="it holds no last.pt", fix="train first, without --finish"
        )
    if world.is_main:
        claim_folder(folder, recipe)
    float_network = load_float_network(recipe)
    images = load_images(recipe)
    world.wait()
    run = _Run(recipe, folder, world, method, float_network, images)
    run.start(tensorboard)
    if not finish:
        run.iterate()
    return run.finish()


class _Run:
    """A run in progress."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        world: World,
        method: Method[Any],
        float_network: SuperResolutionNetwork,
        images: Images,
    ) -> None:
        model = build_model(recipe, method, float_network)
        self.recipe, self.folder, self.world = recipe, folder, world
        self.method, self.model, self.images = method, model, images
        method.watch(model, float_network)
        self.gradient_step = build_gradient_step(recipe, model, method, world)
        self.optimizer = build_optimizer(model, recipe.optimizer)
        self.average = MovingAverage(model, recipe.optimizer.ema_decay)
        self.progress = Progress()
        self.journal = Journal(None, 0, 0)

    def start(self, tensorboard: bool) -> None:
        """Resume from last.pt, or calibrate a fresh model."""
        resumed = (self.folder / "last.pt").exists()
        if resumed:
            self.progress = load_state(self.folder / "last.pt", self.model, self.optimizer, self.average)
        else:
            calibrate(self.model, self.method, self.images, self.recipe)
            self.world.broadcast(list(self.model.network.state_dict().values()))
            self.average = MovingAverage(self.model, self.recipe.optimizer.ema_decay)
        path = self.folder / "log.jsonl" if self.world.is_main else None
        board = open_board(self.folder / "tensorboard", self.progress.iteration) if path and tensorboard else None
        self.journal = Journal(path, self.recipe.run.iterations, self.progress.iteration, board)
        use_tf32(self.recipe.run.tf32)
        if self.recipe.run.compile:
            compile_quantizers(self.model)
        if self.images.skipped:
            self.journal.tell(f"skipped {self.images.skipped} images smaller than a patch")
        reason = self.method.why_not_exportable()
        if reason:
            self.journal.tell(f"note: this run cannot end in a model.pt: {reason}")
        where = f"resuming at iteration {self.progress.iteration}" if resumed else "starting"
        self.journal.tell(
            f"{where}: {self.method.name}, {len(self.model.layers)} quantized layers, "
            f"{len(self.images.pool.pairs)} images, {self.recipe.run.iterations} iterations"
        )

    def iterate(self) -> None:
        """Train up to the last iteration, checkpointing on the way and on Ctrl-C."""
        settings = self.recipe.run
        share = self.world.share(settings.batch)

        def batch(iteration: int) -> tuple[Tensor, Tensor]:
            low, high = self.images.pool.batch(iteration, settings.batch)
            return low[share], high[share]

        with (
            interruptible() as interrupted,
            self.journal.bar(),
            closing(map_ahead(batch, range(self.progress.iteration, settings.iterations), depth=3)) as batches,
        ):
            for low, high in batches:
                values = self.step(low.to(settings.device), high.to(settings.device))
                done = self.progress.iteration
                is_last = done == settings.iterations
                if done % settings.log_every == 0 or is_last:
                    self.journal.step(done, values)
                if self.images.validation and (done % settings.validate_every == 0 or is_last):
                    self.validate()
                stop = self.world.any(interrupted.is_set())
                if done % settings.checkpoint_every == 0 or is_last or stop:
                    self.save()
                if stop:
                    self.journal.tell(
                        f"interrupted after iteration {done}; the same command resumes from {self.folder / 'last.pt'}"
                    )
                    raise KeyboardInterrupt

    def step(self, low: Tensor, high: Tensor) -> dict[str, float]:
        """One optimizer step; returns what to log."""
        iteration, settings = self.progress.iteration, self.recipe.run
        factor = rate_factor(self.recipe.optimizer, iteration, settings.iterations)
        result = self.gradient_step(low, high, iteration)
        loss, combined = result.loss, result.combined
        if not bool(torch.isfinite(loss)):
            raise InputError(
                f"training diverged at iteration {iteration}",
                why=f"the loss is {loss.item()}; {first_broken_layer(self.model, low)}",
                fix=f"lower the learning rates and use another --out, or resume from {self.folder / 'last.pt'}",
            )
        check_finite(combined, iteration)
        for name, parameter in self.model.parameters().items():
            parameter.grad = combined.get(name)
        set_rates(self.optimizer, factor)
        self.optimizer.step()
        self.model.project()
        self.average.update(self.model, iteration)
        self.progress.iteration += 1
        values = {"loss": loss.item(), "learning_rate": self.recipe.optimizer.learning_rate * factor}
        if self.progress.iteration % settings.log_every == 0:
            values |= logged(self.method.auxiliary_name, result)
        return values

    def validate(self) -> None:
        """Measure the parameters that would be frozen now, and remember the best."""
        if self.world.is_main:
            state = self.average.weights(self.model)
            psnr_db = validate(self.model, state, self.images.validation, self.recipe.run.device)
            best = psnr_db > self.progress.best.get("psnr_db", float("-inf"))
            if best:
                self.progress.best = {"psnr_db": psnr_db, "iteration": self.progress.iteration, "model": state}
            self.journal.validation(self.progress.iteration, psnr_db, ranges(self.model), best=best)
        self.world.wait()

    def save(self) -> None:
        """Write last.pt."""
        if self.world.is_main:
            save_state(self.folder / "last.pt", self.model, self.optimizer, self.average, self.progress)
        self.world.wait()

    def finish(self) -> TrainableModel:
        """Freeze the chosen parameters into model.pt."""
        chosen = self.progress.best.get("model") if self.recipe.run.select == "best" else None
        self.model.network.load_state_dict(chosen or self.average.weights(self.model))
        if not self.world.is_main:
            return self.model
        self.simplify()
        reason = self.method.why_not_exportable()
        if reason:
            self.journal.tell(f"no model.pt: {reason}")
        elif not self.model.layers:
            with atomic_path(self.folder / "weights.pt") as temporary:
                torch.save(self.model.float_network().state_dict(), temporary)
            self.journal.tell(f"wrote {self.folder / 'weights.pt'}")
        else:
            save_model(self.model.freeze(self.provenance()), self.folder / "model.pt")
            self.journal.tell(f"wrote {self.folder / 'model.pt'}")
        return self.model

    def simplify(self) -> None:
        """Let the method give up what no static grid can hold, and tell what that costs."""
        before = copy.deepcopy(self.model)
        given_up = self.method.simplify(self.model)
        if not given_up:
            return
        costs = ""
        if pairs := self.images.validation:
            first, then = (
                validate(model, model.network.state_dict(), pairs, self.recipe.run.device)
                for model in (before, self.model)
            )
            costs = f": {then - first:+.3f} dB on the validation images ({first:.3f} -> {then:.3f})"
        self.journal.tell(f"{given_up}{costs}")

    def provenance(self) -> dict[str, Any]:
        """Where a model.pt comes from, as plain values."""
        start = self.recipe.network.weights
        weights = expand_places(start)
        return {
            "made_by": f"odm-deploy training {__version__}",
            "method": self.method.name,
            "recipe": to_tables(self.recipe),
            "iterations": self.progress.iteration,
            "validation_psnr_db": self.progress.best.get("psnr_db"),
            "float_weights": {"name": weights.name, "sha256": file_sha256(weights)} if start else None,
        }


@contextmanager
def interruptible() -> Generator[threading.Event, None, None]:
    """Yield an event that the first Ctrl-C (or SIGTERM) sets; the second one interrupts at once."""
    requested = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    # Signals can only be handled in the main thread; elsewhere the caller handles them.
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
