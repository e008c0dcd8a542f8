"""Ctrl-C from a command's first line to its last: one word and exit code 130.

Wherever it finds the program, Python raises KeyboardInterrupt there. In the middle of an import that is a traceback of
other people's modules, and where these are native code it can end the process by a signal of another kind. In what
Python calls when an object goes away, it is printed and forgotten, and the work goes on. So it waits until that is
over; where nothing has been begun yet, imports are simply given up.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress

# As typing names it, which takes longer to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from types import CodeType, FrameType

EXIT_CODE = 130
_LOOKED_AGAIN_AFTER_S = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"
_GOING_AWAY = "__del__"
_WEAK_REFERENCES = ("weakref.py", "_weakrefset.py")
"""Of these files of Python's, functions are called back when an object goes away."""
_nothing_begun = False


@contextmanager
def told_of_interruption() -> Generator[None]:
    """Say of Ctrl-C in the first imports what `odm_deploy.terminal.run` says of it later."""
    wait_for_imports()
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        let_go()
        sys.exit(EXIT_CODE)


def wait_for_imports() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt only where no import is under way and no object is going away, or as
    soon as that is over.

    Whoever started the process may have had it ignore Ctrl-C, or have a handler of its own: that stays.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not hasattr(signal, "setitimer"):
        return
    try:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
    except ValueError:
        # Only the main thread takes signals.
        return


@contextmanager
def nothing_begun() -> Generator[None]:
    """Meanwhile Ctrl-C ends the process at once, in the middle of an import, too.

    Only while there is nothing to clean up: no file, no other process, no hidden cursor of a terminal.
    """
    global _nothing_begun
    _nothing_begun = True
    try:
        yield
    finally:
        _nothing_begun = False


def let_go() -> None:
    """From now on, Ctrl-C ends the process as it would any other: nothing is left to be told or cleaned up."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # One that still waits comes too late; at exit it would find no handler, and end the process.
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _interrupt(_: int, frame: FrameType | None) -> None:
    if _nothing_begun:
        # The stream itself may be in use where the signal found the program.
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(EXIT_CODE)
    while frame is not None:
        if _has_to_wait_for(frame.f_code):
            signal.setitimer(signal.ITIMER_REAL, _LOOKED_AGAIN_AFTER_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _has_to_wait_for(code: CodeType) -> bool:
    file = code.co_filename
    return file == _IMPORTING or file.endswith(_WEAK_REFERENCES) or code.co_name == _GOING_AWAY
