"""The training loop. Read it top to bottom: `train` is the whole run, `_Run.step` one iteration."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from odm_deploy.errors import InputError, UsageError
from odm_deploy.pipeline import map_ahead
from training.acceleration import compile_quantizers, use_tf32
from training.distributed import World
from training.loop.diagnostics import check_finite, first_broken_layer, logged, ranges, validate
from training.loop.ending import write_result
from training.loop.interruption import interruptible
from training.loop.journal import Journal, open_board
from training.loop.preparation import build_gradient_step, build_model, calibrate, load_float_network, load_images
from training.loop.state import Progress, claim_folder, load_state, save_state
from training.loop.step import MovingAverage, build_optimizer, follow, rate_factor, set_rates
from training.methods.registry import build_method
from training.model import TrainableModel
from training.recipe import Recipe


def train(
    recipe: Recipe, folder: Path, world: World, *, finish: bool = False, tensorboard: bool = False
) -> TrainableModel:
    """Run a recipe to its end, from wherever `folder` says it stands.

    Leaves in `folder`: config.json, log.jsonl, last.pt (resumable state), and model.pt (the frozen result; for a float
    run weights.pt) once all iterations are done.

    Args:
        recipe: what to train, and how.
        folder: the run's own, made if need be.
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
    if finish and not (folder / "last.pt").exists():
        raise UsageError(
            f"nothing to finish in {folder}", why="it holds no last.pt", fix="train first, without --finish"
        )
    run = _Run(recipe, folder, world)
    run.start(tensorboard)
    if not finish:
        run.iterate()
    return run.finish()


class _Run:
    """A run in progress."""

    def __init__(self, recipe: Recipe, folder: Path, world: World) -> None:
        self.recipe, self.folder, self.world = recipe, folder, world
        self.method = build_method(recipe.method)
        if world.is_main:
            claim_folder(folder, recipe)
        float_network, self.images = load_float_network(recipe), load_images(recipe)
        world.wait()
        self.model = build_model(recipe, self.method, float_network)
        self.method.watch(self.model, float_network)
        self.gradient_step = build_gradient_step(recipe, self.model, self.method, world)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.average = MovingAverage(self.model, recipe.optimizer.ema_decay)
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
        set_rates(self.optimizer, factor)
        follow(self.model, self.optimizer, combined)
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
        if self.world.is_main:
            write_result(
                *(self.recipe, self.method, self.model, self.images.validation, self.progress),
                folder=self.folder,
                tell=self.journal.tell,
            )
        return self.model
