"""The terminal face of every program here: results on stdout, talk on stderr, one line for an error.

Shared by the verbs of `odm-deploy`, by `python -m training` and `calibration`, and by the scripts in `tools/`.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.errors import OdmError, UsageError
from odm_deploy.interruption import EXIT_CODE, let_go, wait_for_imports
from odm_deploy.missing_packages import missing_package
from odm_deploy.progress import PercentStage

if TYPE_CHECKING:
    from rich.table import Table

_PIPED_WIDTH = 140
_SECONDS_BETWEEN_LINES = 5.0

_STDOUT = "odm_deploy.stdout"


def _alone_on_stdout(context: click.Context, _: click.Parameter, is_wanted: bool) -> bool:
    """Send to stderr what anybody else prints while the command runs: the code of a stranger's network, say."""
    if is_wanted:
        context.meta[_STDOUT] = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))
    return is_wanted


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_alone_on_stdout,
    help="Print machine-readable JSON, alone, on stdout; logs go to stderr.",
)


class SizeParameter(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - generic in new versions only
    """Type of options for sizes in pixels, as video people write them: `1280x720` becomes (1280, 720)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Width and height. Raises UsageError for what is no size."""
        if isinstance(value, tuple):
            width, height = value
            return width, height
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise UsageError(f"--size {value}", why="it is not WIDTHxHEIGHT in pixels", fix="write it like 1280x720")
        return int(width), int(height)


SIZE = SizeParameter()


def emit_json(document: dict[str, Any]) -> None:
    """Print `document` as JSON on stdout. Infinities and NaN become null: JSON has neither."""
    context = click.get_current_context(silent=True)
    click.echo(json.dumps(_finite(document), indent=2), file=context and context.meta.get(_STDOUT))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> Table:
    """A table for people: the first column and those named in `left` are flush left, the others right.

    Names in it may be a stranger's: what would be a style or a command to the terminal is shown as it is written.
    """
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> Text:
        return Text(one_line(text))

    made = Table(title=Text(one_line(title), "table.title"), title_justify="left")
    for index, name in enumerate(head):
        made.add_column(plain(name), justify="right" if index and name not in left else "left", no_wrap=index == 0)
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def print_table(table: Table) -> None:
    """Print on stdout. Into a file or a pipe, a table keeps its columns whatever width is assumed there."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)


def say(text: str) -> None:
    """A line of talk, on stderr, so that stdout stays what was asked for; a stranger's names do not break it."""
    click.echo(one_line(text), err=True)


def show(*lines: str) -> None:
    """Lines of a result, on stdout; a stranger's names do not break them."""
    for line in lines:
        click.echo(one_line(line))


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters, which names of files may hold, spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress(description: str, rate: str | None = None) -> Generator[Callable[..., Iterator[Any]]]:
    """Yield a `Track`, which shows a bar with ETA on stderr while `items` are consumed.

    Work of several stages calls it once for each; `description` is what the bar says where no stage is named. `rate`
    is the unit of the speed to show, such as fps for items that are frames.

    On anything but a terminal, bars would make logs unreadable: there it is a line every few seconds.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Done(ProgressColumn):
        """How many items, or which part."""

        def render(self, task: Task) -> Text:
            return Text(_done(int(task.completed), int(task.total or 0), "/", percent=task.fields["percent"]))

    class Speed(ProgressColumn):
        """Items a second, as lately measured."""

        def render(self, task: Task) -> Text:
            return Text("" if rate is None or not task.speed else f"{task.speed:.1f} {rate}")

    console = Console(stderr=True)
    if not console.is_terminal:
        with _told(description) as track:
            yield track
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Done(),
        Speed(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:

        def track(items: Iterable[Any], total: int, stage: str = description) -> Iterator[Any]:
            task = bar.add_task(stage, total=total, percent=isinstance(stage, PercentStage))
            yield from bar.track(items, total=total, task_id=task)

        yield track


def progress_alone(items: Iterable[Any], total: int, stage: str = "") -> Iterator[Any]:
    """A `Track` whose bar is gone when its items are, for work that something else than `progress` goes on to show."""
    with progress(stage) as track:
        yield from track(items, total, stage)


@contextmanager
def _told(description: str) -> Generator[Callable[..., Iterator[Any]]]:
    """`progress` in lines. A clock tells them, for a single item may take minutes."""
    state = _Stage(description, 0, time.monotonic())
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_SECONDS_BETWEEN_LINES):
            # A stage that is over stays over, however long what follows it takes.
            if state.total and not state.told:
                state.told = state.done >= state.total
                say(str(state))

    def track(items: Iterable[Any], total: int, stage: str = description) -> Iterator[Any]:
        state.name, state.total, state.done, state.started = stage, total, 0, time.monotonic()
        state.told = False
        for item in items:
            yield item
            state.done += 1
            state.last = time.monotonic()

    clock = threading.Thread(target=tell, daemon=True)
    clock.start()
    try:
        yield track
    finally:
        over.set()
        clock.join()


@dataclass
class _Stage:
    """How far the work has come; as text, what is told of it."""

    name: str
    total: int
    started: float
    done: int = 0
    last: float = 0.0
    """When the last item was done."""
    told: bool = False
    """That all of it is done."""

    def __str__(self) -> str:
        now = time.monotonic()
        left = ""
        if 0 < self.done < self.total:
            # The one that is under way has taken some of its time already.
            each = (self.last - self.started) / self.done
            left_s = each * (self.total - self.done) - (now - self.last)
            # Where it takes longer than those before, nobody knows.
            left = f", {left_s:.0f} s left" if left_s > 0 else ""
        done = _done(self.done, self.total, " of ", percent=isinstance(self.name, PercentStage))
        return f"{self.name}: {done}, {now - self.started:.0f} s{left}"


def _done(done: int, total: int, of: str, *, percent: bool) -> str:
    return f"{100 * done // max(total, 1)} %" if percent else f"{done}{of}{total}"


def report_error(error: BaseException) -> int:
    """Print one line for `error` on stderr and return its exit code. Unknown exceptions are not swallowed."""
    if isinstance(error, OdmError):
        click.echo(one_line(f"error: {error}"), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        click.echo(f"error: {_of_click(error)}", err=True)
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        # click puts an error of its own in its place. What was interrupted may tell how it goes on.
        told = str(error.__cause__ or "") if isinstance(error, click.Abort) else str(error)
        click.echo(one_line(f"interrupted: {told}" if told else "interrupted"), err=True)
        return EXIT_CODE
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
        return report_error(missing)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        click.echo("error: out of memory; try a smaller --tile or smaller images", err=True)
        return 1
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has enough of it.
        _silence_output()
        return 1
    if isinstance(error, OSError):
        place = f"cannot use {error.filename}" if error.filename else "cannot write the output"
        click.echo(one_line(f"error: {place}: {error.strerror or error}"), err=True)
        _silence_output()
        return 1
    raise error


def _of_click(error: click.ClickException) -> str:
    """What click has against a call, on one line like all other errors, and where the verb's options are listed."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = one_line(message[:1].lower() + message[1:])
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message}; {context.command_path} --help shows what there is"


def _silence_output() -> None:
    """What is still to be written at exit goes nowhere, rather than failing there again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_closed_streams() -> None:
    """Let streams that whoever started the process had closed lead nowhere.

    Their numbers would go to the next files that are opened, and what libraries print would go into those.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given, which is this one: those before it are taken by now.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def run(command: click.Command, prog_name: str) -> None:
    """Run a click command as a process: one line per error, the documented exit code, no traceback."""
    _fill_closed_streams()
    # Torch's threads spin while they wait for each other, and on a busy machine take the cores from those with work to
    # do: three times the processor time. Read once, when torch is loaded, which no command does before this line.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Remarks of libraries about a stranger's network, such as on arguments it will have to name, are for its author.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    wait_for_imports()
    try:
        result = command.main(prog_name=prog_name, standalone_mode=False)
        # What does not reach its end is a failure of the command, not of the interpreter's exit.
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BaseException as error:
        code = report_error(error)
    # At exit Python looks through all objects once more; torch and its exporter made a million: a second for nothing.
    gc.freeze()
    let_go()
    sys.exit(code)
