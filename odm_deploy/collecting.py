"""Collecting garbage less often while very many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

_OBJECTS = 1_000_000
"""New ones between two looks; Python's own choice is 700."""


@contextmanager
def collecting_rarely() -> Generator[None]:
    """While this lasts, Python looks for cycles of dead objects less often.

    Importing torch and its exporter and tracing a network makes a million objects, hardly any of which dies: a fifth of
    the time of `odm-deploy export` goes into looking them through.
    """
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
