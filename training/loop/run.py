"""The training loop. Read it top to bottom: `train` is the whole run, `_Run.step` one iteration."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from torch import Tensor

from odm_deploy.errors import UsageError
from odm_deploy.progress import counted
from training.acceleration import accelerate, check_device
from training.distributed import World
from training.loop.diagnostics import logged, quantization_errors, ranges, validate, weight_bounds
from training.loop.ending import write_result
from training.loop.feeding import feed
from training.loop.interruption import interruptible
from training.loop.journal import Journal, open_board
from training.loop.outcome import Outcome
from training.loop.preparation import (
    build_gradient_step,
    build_model,
    calibrate,
    equalize,
    load_float_network,
    load_images,
)
from training.loop.state import Progress, check_folder, claim_folder, load_state, save_state
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
        MissingError: `tensorboard` where it is not installed; a GPU that is not there.
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
        check_device(recipe.run.device)
        if world.is_main:
            check_folder(folder, recipe)
        float_network, self.images = self.method.adapt(load_float_network(recipe)), load_images(recipe)
        self.scaled_channels = equalize(float_network, self.images, recipe)
        world.wait()
        self.model = build_model(recipe, self.method, float_network)
        self.method.watch(self.model, float_network)
        self.gradient_step = build_gradient_step(recipe, self.model, self.method, world)
        self.optimizer = build_optimizer(self.model, recipe.optimizer, self.method.at_weights_rate)
        self.average = MovingAverage(self.model, recipe.optimizer.ema_decay)
        self.progress = Progress()
        self.outcome: Outcome | None = None
        self.journal = Journal(None, 0, 0)
        self.state_path = folder / "last.pt"

    def start(self, tensorboard: bool) -> None:
        """Resume from last.pt, or calibrate a fresh model; before this, a run that cannot be has left nothing."""
        resumed = self.state_path.exists()
        if resumed:
            self.progress = load_state(self.state_path, self.model, self.optimizer, self.average)
            self.check_length()
        if self.world.is_main:
            claim_folder(self.folder, self.recipe)
        if not resumed:
            calibrate(self.model, self.method, self.images, self.recipe)
            self.world.broadcast(list(self.model.network.state_dict().values()))
            self.average = MovingAverage(self.model, self.recipe.optimizer.ema_decay)
        path = self.folder / "log.jsonl" if self.world.is_main else None
        board = open_board(self.folder / "tensorboard", self.progress.iteration) if path and tensorboard else None
        self.journal = Journal(path, self.recipe.run.iterations, self.progress.iteration, board)
        note = accelerate(self.model, self.recipe.run)
        if note:
            self.journal.tell(note)
        if self.images.skipped:
            self.journal.tell(f"skipped {counted(self.images.skipped, 'image')} smaller than a patch")
        reason = self.method.why_not_exportable()
        if reason:
            self.journal.tell(f"note: this run cannot end in a model.pt: {reason}")
        where = f"resuming at iteration {self.progress.iteration}" if resumed else "starting"
        self.journal.tell(
            f"{where}: {self.method.name}, {counted(len(self.model.layers), 'quantized layer')}, "
            f"{counted(len(self.images.pool.pairs), 'image')}, {counted(self.recipe.run.iterations, 'iteration')}"
        )

    def check_length(self) -> None:
        """Refuse a state beyond the recipe's end: its result would pass for that of a shorter run.

        Raises:
            UsageError: it is.
        """
        done, wanted = self.progress.iteration, self.recipe.run.iterations
        if done > wanted:
            raise UsageError(
                f"{self.folder} holds {counted(done, 'iteration')}",
                why=f"run.iterations is {wanted}, and a longer run does not go back",
                fix="choose another --out, or remove it",
            )

    def iterate(self) -> None:
        """Train up to the last iteration, checkpointing on the way and on Ctrl-C."""
        settings = self.recipe.run
        span = range(self.progress.iteration, settings.iterations)
        with (
            interruptible() as interrupted,
            self.journal.bar(),
            closing(feed(self.images.pool, settings, span, self.world)) as batches,
        ):
            for low, high in batches:
                previous, outcome = self.outcome, self.step(low, high)
                self.outcome = outcome
                if previous is not None:
                    previous.check(self.model, self.state_path)
                done = self.progress.iteration
                is_last = done == settings.iterations
                if done % settings.log_every == 0 or is_last:
                    self.log(outcome)
                if self.images.validation and (done % settings.validate_every == 0 or is_last):
                    self.validate()
                stop = self.world.any(interrupted.is_set())
                if done % settings.checkpoint_every == 0 or is_last or stop:
                    self.save()
                if stop:
                    told = f"after iteration {done}; the same command resumes from {self.state_path}"
                    raise KeyboardInterrupt(told if self.world.is_main else "")

    def step(self, low: Tensor, high: Tensor) -> Outcome:
        """One optimizer step, whose outcome has still to be checked where it runs on a GPU."""
        iteration, settings = self.progress.iteration, self.recipe.run
        result = self.gradient_step(low, high, iteration)
        outcome = Outcome.of(iteration, low, result)
        if outcome.broken is None:
            outcome.check(self.model, self.state_path)
        set_rates(self.optimizer, rate_factor(self.recipe.optimizer, iteration, settings.iterations))
        follow(self.model, self.optimizer, result.combined, outcome.broken)
        self.average.update(self.model, iteration)
        self.progress.iteration += 1
        return outcome

    def log(self, outcome: Outcome) -> None:
        """Tell of the latest step and write it down."""
        self.check()
        factor = rate_factor(self.recipe.optimizer, outcome.iteration, self.recipe.run.iterations)
        values = {"loss": outcome.loss, "learning_rate": self.recipe.optimizer.learning_rate * factor}
        values |= logged(self.method.auxiliary_name, outcome.gradients)
        self.journal.step(outcome.iteration + 1, values)

    def check(self) -> None:
        """Refuse to go on from a broken step."""
        if self.outcome is not None:
            self.outcome.check(self.model, self.state_path)

    def validate(self) -> None:
        """Measure the parameters that would be frozen now, and remember the best."""
        self.check()
        if self.world.is_main:
            state = self.average.weights(self.model)
            pairs, device = self.images.validation, self.recipe.run.device
            psnr_db = validate(self.model, state, pairs, device, self.recipe.data.validation_psnr)
            best = psnr_db > self.progress.best.get("psnr_db", float("-inf"))
            if best:
                self.progress.best = {"psnr_db": psnr_db, "iteration": self.progress.iteration, "model": state}
            smallest = min(pairs, key=lambda pair: pair.low.size)
            facts = {
                "ranges": ranges(self.model),
                "quantization_errors": quantization_errors(self.model, state, smallest, device),
                "weight_bounds": weight_bounds(self.model),
            }
            self.journal.validation(self.progress.iteration, psnr_db, facts, best=best)
        self.world.wait()

    def save(self) -> None:
        """Write last.pt."""
        self.check()
        if self.world.is_main:
            save_state(self.state_path, self.model, self.optimizer, self.average, self.progress)
        self.world.wait()

    def finish(self) -> TrainableModel:
        """Freeze the chosen parameters into model.pt."""
        chosen = self.progress.best.get("model") if self.recipe.run.select == "best" else None
        self.model.network.load_state_dict(chosen or self.average.weights(self.model))
        if self.world.is_main:
            write_result(
                *(self.recipe, self.method, self.model, self.images.validation, self.progress, self.scaled_channels),
                folder=self.folder,
                tell=self.journal.tell,
            )
        return self.model
