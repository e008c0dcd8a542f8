"""The seconds in which a command imports PyTorch: told where they are many, and ended at once by Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from odm_deploy.interruption import nothing_begun
from odm_deploy.terminal import say

TOLD_AFTER_S = 5.0
"""As often as progress is told in a pipe."""


@contextmanager
def slow_imports() -> Generator[None]:
    """While a command imports what its work needs, before it has begun any of it."""
    clock = threading.Timer(TOLD_AFTER_S, say, ["loading PyTorch"])
    clock.daemon = True
    clock.start()
    try:
        with nothing_begun():
            yield
    finally:
        clock.cancel()
