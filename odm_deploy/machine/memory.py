"""This machine's memory."""

from __future__ import annotations

import os

_ASSUMED_BYTES = 8 << 30


def memory_bytes() -> int:
    """All of it, in use or not; 8 GiB on systems that do not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _ASSUMED_BYTES
