"""One command in a forked process: imports are paid once, everything else happens as for a user."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HANG_S = 60.0
"""No damaged file may hold a command up for longer."""
MEMORY_BYTES = 4 << 30
"""No damaged file may cost more memory than this, beside what the program itself takes."""
_DOCUMENTED = (0, 1, 2, 3, 4)
_POLL_S = 0.002

_HEAVY = (
    "av",
    "odm_deploy.cli.upscale_images",
    "odm_deploy.lowering.lint",
    "odm_deploy.proof.verify",
    "training.recipe_files",
)

Call = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    said: str
    """Its last words on stderr."""
    seconds: float
    peak_bytes: int
    """Largest resident memory."""
    killed: bool = False
    """Whether it was ended on purpose."""

    @property
    def fault(self) -> str:
        """What is wrong with that; empty where it ended as documented, in a line."""
        if self.killed:
            return ""
        if self.seconds > HANG_S:
            return f"hangs for {self.seconds:.0f} s"
        if self.code not in _DOCUMENTED:
            return f"ends with {self.code}: {self.said[-300:]}"
        if "Traceback (most recent call last)" in self.said:
            return f"traceback: {self.said[-300:]}"
        if self.code and not self.said.strip():
            return f"ends with {self.code} and says nothing"
        return f"takes {self.peak_bytes >> 20} MiB" if self.peak_bytes > MEMORY_BYTES else ""


def import_commands() -> None:
    """Import what all commands need, without starting a thread: forked processes have only the one that forked."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in _HEAVY:
        importlib.import_module(module)
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)


def odm_deploy(*arguments: str | Path) -> Call:
    """The command `odm-deploy ARGUMENTS`."""

    def call() -> None:
        from odm_deploy.cli import main

        sys.argv = ["odm-deploy", *map(str, arguments)]
        main()

    return call


def training(*arguments: str | Path) -> Call:
    """The command `python -m training ARGUMENTS`."""

    def call() -> None:
        from odm_deploy.terminal import run
        from training.__main__ import command

        sys.argv = ["training", *map(str, arguments)]
        run(command, "python -m training")

    return call


def run_forked(
    call: Call, *, folder: Path, kill_after_s: float | None = None, file_bytes: int | None = None
) -> Outcome:
    """Run a command in a process of its own.

    Args:
        call: the command.
        folder: the folder it is run in.
        kill_after_s: end it and its children with SIGKILL after so long, if it still runs.
        file_bytes: no file may grow beyond this: the disk is full there.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_the_command(call, folder, errors, file_bytes)
        limit = kill_after_s if kill_after_s is not None else HANG_S + 5
        killed, (status, usage) = _waited(child, started + limit)
        seconds = time.monotonic() - started
        errors.seek(0)
        said = errors.read()[-4000:].decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    on_purpose = killed and kill_after_s is not None
    return Outcome(code, said, seconds, usage.ru_maxrss * 1024, on_purpose)


def _waited(child: int, deadline: float) -> tuple[bool, tuple[int, resource.struct_rusage]]:
    killed = False
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return killed, (status, usage)
        if not killed and time.monotonic() > deadline:
            # The whole group: builders and probes are children of the command.
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:
                # It has not come so far as to have a group.
                os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(_POLL_S)


def _be_the_command(call: Call, folder: Path, errors: IO[bytes], file_bytes: int | None) -> None:
    """In the forked process: run the command and end. Never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(errors.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        sys.stdout, sys.stderr = (open(number, "w", errors="replace") for number in (1, 2))  # noqa: PTH123, SIM115
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if file_bytes is not None:
            # A write beyond the limit then fails with an error, as on a full disk, and kills nobody.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        call()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 1
        os._exit(code)


def run_all(calls: Sequence[Call], folder: Path) -> None:
    """Run preparations one after the other in forked processes; the first that fails ends everything."""
    for call in calls:
        outcome = run_forked(call, folder=folder)
        if outcome.code:
            raise AssertionError(f"preparation failed: {outcome}")
