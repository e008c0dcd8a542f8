"""Several commands one after the other in one forked process: a tenth of the cost, each with its own ends and limits.

Each goes through the same entry point with its own words, folder, standard streams and exit code. What ends the
process, or holds it up, is the fault of the command that ran; those behind it run in the next process.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from torture.commands import Command
from torture.forked import HANG_S, LETHAL_BYTES, Outcome, kill_group, resident_bytes, run_here

_RECORD = struct.Struct("<idq")
"""Exit code, seconds and largest resident memory in bytes of a command that ended."""
_POLL_S = 0.2


def run_batch(commands: Sequence[tuple[Command, Path]]) -> list[Outcome]:
    """Run commands, each in its folder; how each ended, in their order."""
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        while len(outcomes) < len(commands):
            _run_some(commands, errors, outcomes)
    return outcomes


def _run_some(commands: Sequence[tuple[Command, Path]], errors: Sequence[IO[bytes]], outcomes: list[Outcome]) -> None:
    """Run those without an outcome yet in one process, as far as that goes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        for place in range(len(outcomes), len(commands)):
            started = time.monotonic()
            code = run_here(*commands[place], errors[place])
            usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            os.write(writer, _RECORD.pack(code, time.monotonic() - started, max(usage) * 1024))
        os._exit(0)
    os.close(writer)
    started, largest = time.monotonic(), 0
    try:
        while len(outcomes) < len(commands):
            ready, _, _ = select.select([reader], [], [], _POLL_S)
            record = os.read(reader, _RECORD.size) if ready else b""
            if len(record) == _RECORD.size:
                code, seconds, peak = _RECORD.unpack(record)
                outcomes.append(Outcome(code, _said(errors[len(outcomes)]), seconds, max(peak, largest)))
                started, largest = time.monotonic(), 0
                continue
            largest = max(largest, resident_bytes(child))
            if not ready and time.monotonic() - started <= HANG_S + 5 and largest <= LETHAL_BYTES:
                continue
            if not ready:
                kill_group(child)
            break
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    if len(outcomes) < len(commands):
        code = os.waitstatus_to_exitcode(status)
        outcomes.append(Outcome(code, _said(errors[len(outcomes)]), time.monotonic() - started, largest))


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read()[-4000:].decode(errors="replace")
