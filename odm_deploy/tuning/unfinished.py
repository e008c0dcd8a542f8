"""What long work has so far, in a file beside its result: the same call goes on from there after a kill."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_path
from odm_deploy.torch_files import read_torch_file

SUFFIX = ".unfinished"


class Unfinished:
    """The file of a result that is not there yet.

    Args:
        result: what the work ends in; the file is called like it, with `SUFFIX` behind.
        of: what the work depends on, plain values. A file of other work is not gone on from.
    """

    def __init__(self, result: Path, of: Mapping[str, Any]) -> None:
        self.path = result.with_name(result.name + SUFFIX)
        self._digest = hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()

    def load(self) -> dict[str, Any] | None:
        """What was kept last; None where nothing was.

        Raises:
            UsageError: the file is of other work, which would be lost.
            InputError: it is damaged.
        """
        if not self.path.exists():
            return None
        try:
            content = read_torch_file(self.path)
        except InputError as error:
            raise InputError(f"{self.path} is damaged", why=error.why, fix="remove it to start anew") from error
        if not isinstance(content, dict) or not {"of", "state"} <= content.keys():
            raise InputError(f"{self.path} is damaged", why="it holds no state", fix="remove it to start anew")
        found = cast("dict[str, Any]", content)
        if found["of"] != self._digest:
            raise UsageError(
                f"{self.path} holds training of another call, or of files that have changed",
                fix="repeat that call to go on with it, name another file with -o, or remove it to start anew",
            )
        return found["state"]

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep plain values and tensors in place of what was kept before, atomically."""
        content = io.BytesIO()
        torch.save({"of": self._digest, "state": dict(state)}, content)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def remove(self) -> None:
        """The result is there."""
        self.path.unlink(missing_ok=True)
