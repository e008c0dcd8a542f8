"""One command in a process of its own: forked, so that imports are paid once, or started anew as a user starts it."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torture.commands import Command

HANG_S = 60.0
"""No damaged file may hold a command up for longer."""
MEMORY_BYTES = 4 << 30
"""No damaged file may cost more memory than this, beside what the program itself takes."""
LETHAL_BYTES = 2 * MEMORY_BYTES
"""A command that takes so much is ended, for the sake of the machine."""
_DOCUMENTED = (0, 1, 2, 3, 4)
_POLL_S = 0.2
_GRACE_S = 2.0
"""So long may those that a command has started take to end after it."""
_FRAMES_BEFORE = 2
"""`run_here` and the call."""
_PAGE = os.sysconf("SC_PAGE_SIZE")

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
    """Largest resident memory, of it or a child of it."""
    killed: bool = False
    """Whether it was ended on purpose."""
    orphans: int = 0
    """Processes that it started and that outlived it; told where it was interrupted."""

    @property
    def fault(self) -> str:
        """What is wrong with that; empty where it ended as documented, in a line."""
        if self.killed:
            return ""
        if self.seconds > HANG_S:
            return f"hangs for {self.seconds:.0f} s"
        if self.peak_bytes > MEMORY_BYTES:
            return f"takes {self.peak_bytes >> 20} MiB"
        if self.code not in _DOCUMENTED:
            return f"ends with {self.code}: {self.said[-300:]}"
        if "Traceback (most recent call last)" in self.said:
            return f"traceback: {self.said[-300:]}"
        return f"ends with {self.code} and says nothing" if self.code and not self.said.strip() else ""


def run_forked(
    call: Call,
    *,
    folder: Path,
    kill_after_s: float | None = None,
    interrupt_after_s: Sequence[float] = (),
    file_bytes: int | None = None,
    fresh: bool = False,
) -> Outcome:
    """Run a command in a process of its own.

    Args:
        call: the command.
        folder: the folder it is run in.
        kill_after_s: end it and its children with SIGKILL after so long, if it still runs.
        interrupt_after_s: send it and its children SIGINT then, as a terminal does.
        file_bytes: no file may grow beyond this: the disk is full there.
        fresh: start it as a user does, with a Python of its own; `call` is a Command then.
    """
    # Whatever is garbage here is collected here, not once in every child, which would copy the pages it lies on.
    gc.collect(0)
    gc.freeze()
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        # What comes before the command's first line waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child = os.fork()
        if child == 0:
            _be_the_command(call, folder, errors, file_bytes, fresh)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        limit = kill_after_s if kill_after_s is not None else HANG_S + 5
        for after_s in interrupt_after_s:
            time.sleep(max(0.0, started + after_s - time.monotonic()))
            _interrupt_group(child)
        killed, largest, (status, usage) = _waited(child, started + limit)
        seconds = time.monotonic() - started
        errors.seek(0)
        said = errors.read()[-4000:].decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    on_purpose = killed and kill_after_s is not None
    orphans = _end_orphans(child) if interrupt_after_s else 0
    return Outcome(code, said, seconds, max(largest, usage.ru_maxrss * 1024), on_purpose, orphans)


def _waited(child: int, deadline: float) -> tuple[bool, int, tuple[int, resource.struct_rusage]]:
    """Whether it was killed, its largest resident memory seen, in bytes, and what wait4 says."""
    killed, largest = False, 0
    watch = os.pidfd_open(child)
    try:
        ended = select.poll()
        ended.register(watch, select.POLLIN)
        while not ended.poll(1000 * max(0.0, min(_POLL_S, deadline - time.monotonic()))):
            largest = max(largest, resident_bytes(child))
            if time.monotonic() > deadline or largest > LETHAL_BYTES:
                kill_group(child)
                killed = True
                ended.poll()
                break
    finally:
        os.close(watch)
    _, status, usage = os.wait4(child, 0)
    return killed, largest, (status, usage)


def resident_bytes(process: int) -> int:
    """Resident memory of a process; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def kill_group(child: int) -> None:
    """End the whole group: builders and probes are children of the command."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        # It has not come so far as to have a group.
        os.kill(child, signal.SIGKILL)


def _interrupt_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGINT)
    except ProcessLookupError:
        # It has not come so far as to have a group, or has ended.
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT)


def _end_orphans(group: int) -> int:
    """How many processes of a group are left `_GRACE_S` later; they are ended."""
    deadline = time.monotonic() + _GRACE_S
    while left := _members(group):
        if time.monotonic() > deadline:
            kill_group(group)
            break
        time.sleep(0.02)
    return len(left)


def _members(group: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            # Behind the name, which may hold anything: state, parent, group.
            state, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(int(entry.name))
    return found


def _be_the_command(call: Call, folder: Path, errors: IO[bytes], file_bytes: int | None, fresh: bool) -> None:
    """In the forked process: run the command and end. Never returns."""
    code = 70
    try:
        os.setsid()
        if file_bytes is not None:
            # A write beyond the limit then fails with an error, as on a full disk, and kills nobody.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        code = run_here(call, folder, errors, fresh=fresh)
    finally:
        os._exit(code)


def run_here(call: Call, folder: Path, errors: IO[bytes], *, fresh: bool = False) -> int:
    """Run a command in this process, with its own folder and standard streams; its exit code.

    With `fresh` it takes this process's place, and nothing comes back.
    """
    os.chdir(folder)
    os.dup2(errors.fileno(), 2)
    taken, given = (call.stdin, call.stdout) if isinstance(call, Command) else (None, None)
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, name, flags in ((0, taken or os.devnull, os.O_RDONLY), (1, given or os.devnull, writing)):
        opened = os.open(name, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if fresh:
        assert isinstance(call, Command)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.execv(call.line[0], call.line)
    modes = ("r", "w", "w")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, errors="replace", closefd=False)  # noqa: SIM115 - they stay open
        for number, mode in enumerate(modes)
    )
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        call()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = _before_the_command(error)
    except BaseException:
        traceback.print_exc()
        code = 70
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    return code


def _before_the_command(error: KeyboardInterrupt) -> int:
    """The exit code of one that was interrupted before its first line, which says so; others should have said it."""
    if len(traceback.extract_tb(error.__traceback__)) > _FRAMES_BEFORE:
        traceback.print_exc()
        return 70
    print("interrupted", file=sys.stderr)
    return 130


def run_all(calls: Sequence[Call], folder: Path) -> None:
    """Run preparations one after the other in forked processes; the first that fails ends everything."""
    for call in calls:
        outcome = run_forked(call, folder=folder)
        if outcome.code:
            raise AssertionError(f"preparation failed: {outcome}")
