"""Reading torch files from strangers: tensors and plain values only, never code."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from odm_deploy.errors import InputError
from odm_deploy.files import require_file
from odm_deploy.kinds_of_files import BEGINNING_BYTES, kind_by_beginning, kind_of
from odm_deploy.numpy_pickles import SAFE, NotNumbersError, with_tensors
from odm_deploy.torch_contents import check_contents

_COMPRESSED_BYTES = 16 << 20
"""What records may hold beyond the file's own length: torch compresses code, but no tensors."""
_CHUNK_BYTES = 1 << 20
_DEEPEST = 32
"""Levels of lists and mappings in plain values."""


def read_torch_file(path: Path | str, wanted: str = "a torch file is wanted") -> Any:
    """Content of a torch file, on the CPU, read with `weights_only=True`; arrays of numpy's as tensors.

    `wanted` is what to do, for whoever named a file of another kind.

    Raises:
        InputError: no such file, not a torch file, a truncated one, one that wants to run code, or one whose content
            `check_contents` refuses.
    """
    path = Path(path)
    require_file(path, wanted)
    if path.stat().st_size == 0:
        raise InputError(f"cannot read {path}", why="the file is empty", fix="copy or download it again")
    with path.open("rb") as stream:
        # One open file throughout: another of its name could come between what is checked and what is read.
        content = _loaded(stream, path, wanted)
    check_contents(content, str(path))
    return content


def _loaded(stream: BinaryIO, path: Path, wanted: str) -> Any:
    start = stream.read(BEGINNING_BYTES)
    magic = start[:4]
    # torch writes zip archives since 1.6, before that (and `pickle` itself) a pickle stream.
    if magic[:2] != b"PK" and magic[:1] != b"\x80":
        # What it holds says more than its name.
        kind = kind_by_beginning(start) or kind_of(path)
        why = f"it is {kind}" if kind not in ("", "a checkpoint") else f"it begins with {magic!r}"
        raise InputError(f"{path} is not a torch file", why=why, fix=wanted)
    if magic[:2] == b"PK":
        _check_records(stream, path, wanted)
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # torch warns about pickle protocols on its way to the error that is reported below.
            warnings.simplefilter("ignore")
            # Of what training codes put beside the weights, these hold attributes and numbers and nothing that runs.
            with torch.serialization.safe_globals([argparse.Namespace, *SAFE]):
                return with_tensors(torch.load(stream, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise _not_of_torch(path) from None
        raise InputError(
            f"refused to read {path}",
            why=_reason(error),
            fix="only tensors and plain values are read; re-save it as a plain state dict",
        ) from None
    except MemoryError:
        raise
    except NotNumbersError as error:
        raise InputError(
            f"refused to read {path}",
            why=str(error),
            fix="only tensors, arrays of numbers and plain values are read; re-save it as a plain state dict",
        ) from None
    except Exception as error:  # torch raises many kinds on damaged archives; none of them helps a user
        if "TorchScript" in str(error):
            raise InputError(
                f"refused to read {path}",
                why="it is a TorchScript program, not weights",
                fix="save the state dict of what torch.jit.load makes of it, if you trust it",
            ) from None
        if "Invalid magic number" in str(error):
            raise _not_of_torch(path) from None
        raise InputError(
            f"cannot read {path}",
            why=f"the file is damaged or truncated ({_reason(error)})",
            fix="copy or download it again",
        ) from None


def _not_of_torch(path: Path) -> InputError:
    return InputError(
        f"refused to read {path}",
        why="it is damaged, or a pickle as Python's own module writes it, which may run code",
        fix="copy it again, or re-save it with torch.save as a plain state dict",
    )


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what is not a plain value: text, numbers, None, and lists and mappings by text of these.

    Raises:
        InputError: something else, or mappings within mappings without an end; `where` says what holds it.
    """
    if depth > _DEEPEST:
        raise InputError(f"{where[:80]}.. is not a plain value", why=f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where[:80]} is not a plain value", why=f"its key {key!r:.40} is no text")
            check_plain(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]", depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise InputError(f"{where[:80]} is not a plain value", why=f"it is a {type(value).__name__}")


def _check_records(stream: BinaryIO, path: Path, wanted: str) -> None:
    """Refuse an archive whose records are much longer than the file: torch stores tensors as they are."""
    try:
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"cannot read {path}",
            why=f"the file is damaged or truncated ({error})",
            fix="copy or download it again",
        ) from None
    if not any(record.filename.endswith("/data.pkl") for record in records):
        named = ", ".join(record.filename for record in records[:3])
        why = f"it is an archive of {named}" if named else "it is an empty archive"
        raise InputError(f"{path} is not a torch file", why=why, fix=wanted)
    held, length = sum(record.file_size for record in records), stream.seek(0, os.SEEK_END)
    if held > length + _COMPRESSED_BYTES:
        raise InputError(
            f"refused to read {path}",
            why=f"its records are compressed: {held} bytes in a file of {length}",
            fix="torch.save never compresses; load it where you trust it, and save it again",
        )
    damaged = _damaged(stream, records)
    # Where torch was told to write no checksums, none is right.
    if 0 < len(damaged) < len(records):
        raise InputError(
            f"cannot read {path}",
            why=f"the file is damaged (the checksum of {damaged[0]} is another)",
            fix="copy or download it again",
        )


def _damaged(stream: BinaryIO, records: list[zipfile.ZipInfo]) -> list[str]:
    """The records of an archive that do not have the checksum which was written with them; torch looks at none."""
    found: list[str] = []
    with zipfile.ZipFile(stream) as archive:
        for record in records:
            try:
                with archive.open(record) as content:
                    while content.read(_CHUNK_BYTES):
                        pass
            except Exception:  # zipfile raises many kinds on damaged archives
                found.append(record.filename)
    return found


def _reason(error: BaseException) -> str:
    """The one telling line of torch's long messages."""
    text = str(error)
    if unknown := re.search(r"GLOBAL (\S+) was not", text):
        return f"it wants to run code: {unknown[1][:100]}"
    for line in text.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return f"it wants to run code: {line.strip()[:160]}"
    return (text.splitlines() or [type(error).__name__])[0].strip()[:160]
