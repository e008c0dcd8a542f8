"""Reading torch files from strangers: tensors and plain values only, never code."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from odm_deploy.errors import InputError


def read_torch_file(path: Path | str) -> Any:
    """Content of a torch file, on the CPU, read with `weights_only=True`.

    Raises:
        InputError: no such file, not a torch file, a truncated one, or one that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read {path}", why="it is a directory" if path.is_dir() else "there is no such file")
    if path.stat().st_size == 0:
        raise InputError(f"cannot read {path}", why="the file is empty", fix="copy or download it again")
    with path.open("rb") as stream:
        magic = stream.read(4)
    # torch writes zip archives since 1.6, before that (and `pickle` itself) a pickle stream.
    if magic[:2] != b"PK" and magic[:1] != b"\x80":
        raise InputError(f"{path} is not a torch file", why=f"it begins with {magic!r}")
    try:
        with warnings.catch_warnings():
            # torch warns about pickle protocols on its way to the error that is reported below.
            warnings.simplefilter("ignore")
            # Of what training codes put beside the weights, this holds attributes and nothing that runs.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"refused to read {path}",
            why=_reason(error),
            fix="only tensors and plain values are read; re-save it as a plain state dict",
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds on damaged archives; none of them helps a user
        if "TorchScript" in str(error):
            raise InputError(
                f"refused to read {path}",
                why="it is a TorchScript program, not weights",
                fix="save the state dict of what torch.jit.load makes of it, if you trust it",
            ) from None
        raise InputError(
            f"cannot read {path}",
            why=f"the file is damaged or truncated ({_reason(error)})",
            fix="copy or download it again",
        ) from None


def _reason(error: BaseException) -> str:
    """The one telling line of torch's long messages."""
    text = str(error)
    for line in text.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return f"it wants to run code: {line.strip()[:160]}"
    return (text.splitlines() or [type(error).__name__])[0].strip()[:160]
