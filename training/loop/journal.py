"""What a run says and writes down: a line or a bar on stderr, `log.jsonl` in its folder, TensorBoard if asked."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odm_deploy.errors import InputError, MissingError
from odm_deploy.files import atomic_path
from odm_deploy.terminal import say

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_SHOWN = ("loss", "learning_rate")  # what a line has room for; log.jsonl holds everything


class Journal:
    """The log of a run. Silent and without a file where `path` is None (every process but the first).

    Args:
        path: `log.jsonl`.
        iterations: length of the whole run.
        start: iterations done before; records beyond that, left by a killed run, are dropped.
        board: where scalars go besides; see `open_board`.
    """

    def __init__(self, path: Path | None, iterations: int, start: int, board: SummaryWriter | None = None) -> None:
        self._path, self._iterations, self._board = path, iterations, board
        self._started, self._start = time.monotonic(), start
        self._update: Any = None
        if path is not None and path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _iteration_of(line) <= start]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @contextmanager
    def bar(self) -> Generator[None, None, None]:
        """Show a progress bar meanwhile, on a terminal; elsewhere `step` prints plain lines instead."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if self._path is None or not console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("training", total=self._iterations, completed=self._start)

            def update(iteration: int, text: str) -> None:
                progress.update(task, completed=iteration, description=text)

            self._update = update
            yield
            self._update = None

    def step(self, iteration: int, values: dict[str, float]) -> None:
        """Tell of a finished iteration (1-based) and write it down."""
        rate = (iteration - self._start) / max(time.monotonic() - self._started, 1e-9)
        self._write({"iteration": iteration, **values, "iterations_per_s": round(rate, 4)})
        if self._path is None:
            return
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in _SHOWN)
        if self._update is not None:
            self._update(iteration, f"{shown}  {rate:.2f} it/s")
            return
        left = (self._iterations - iteration) / rate if rate else 0.0
        say(f"{iteration}/{self._iterations}  {shown}  {rate:.2f} it/s  ETA {timedelta(seconds=round(left))}")

    def validation(self, iteration: int, psnr_db: float, facts: dict[str, dict[str, Any]], *, best: bool) -> None:
        """Tell of a validation, and write down `facts`, such as where the activation ranges are by then."""
        self._write({"iteration": iteration, "validation_psnr_db": psnr_db, **facts})
        self.tell(f"validation at {iteration}: {psnr_db:.3f} dB{', the best so far' if best else ''}")

    def tell(self, text: str) -> None:
        """A line of talk, from the first process only."""
        if self._path is not None:
            say(text)

    def _write(self, record: dict[str, Any]) -> None:
        if self._path is None:
            return
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, record["iteration"])
            for name, (first, last) in record.get("ranges", {}).items():
                self._board.add_scalar(f"first_level/{name}", first, record["iteration"])
                self._board.add_scalar(f"last_level/{name}", last, record["iteration"])
            self._board.flush()
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self._path}", why=str(error.strerror or error)) from None


def open_board(folder: Path, start: int) -> SummaryWriter:
    """A TensorBoard writer into `folder`; what an interrupted run wrote after iteration `start` is superseded.

    Raises:
        MissingError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MissingError("cannot write for TensorBoard", why=str(error), fix="pip install tensorboard") from None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _iteration_of(line: str) -> float:
    """The iteration of a record; a line cut short by a kill counts as beyond the end."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
