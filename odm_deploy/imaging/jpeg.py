"""How much work a JPEG file asks for: its scans, each of which passes over the whole image once more.

Photographs have one, progressive ones about ten. But a scan may be as short as 14 bytes, and a file of a megabyte keeps
a decoder busy for minutes; libjpeg leaves the limit to whoever calls it.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from odm_deploy.errors import InputError

MOST_SCANS = 100
"""Far more than any encoder writes."""
_MOST_SEGMENTS = 10_000
"""Profiles and comments take hundreds at most."""
# Bytes 00 stand for an FF among the data, FF fills, and 01 and D0 to D8 have no length and end nothing.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_scans(source: Path | bytes, what: str) -> None:
    """Refuse a JPEG file of more scans or segments than any encoder writes. `what` names it.

    Raises:
        InputError: it has.
        OSError, ValueError: it cannot be read, or is empty.
    """
    if isinstance(source, bytes):
        _check(source, what)
        return
    with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check(data, what)


def _check(data: bytes | mmap.mmap, what: str) -> None:
    place, scans, segments = 0, 0, 0
    while found := _MARKER.search(data, place):
        place, kind = found.end(), data[found.end() - 1]
        if kind == _END_OF_IMAGE:
            return
        scans += kind == _START_OF_SCAN
        segments += 1
        if scans > MOST_SCANS or segments > _MOST_SEGMENTS:
            limit = f"{MOST_SCANS} scans" if scans > MOST_SCANS else f"{_MOST_SEGMENTS} segments"
            raise InputError(f"cannot read {what}", why=f"it has more than {limit}", fix="save it anew")
        place += max(int.from_bytes(data[place : place + 2], "big"), 2)
