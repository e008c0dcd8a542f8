"""The kernels that TensorRT for RTX compiled for this GPU, kept in a file from one process to the next.

A plan of TensorRT for RTX holds no machine code: every process compiles its kernels when it first runs a shape. Its
`IRuntimeCache` writes them down; by its documentation it refuses by itself what another GPU, driver or version wrote.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from odm_deploy.errors import InputError
from odm_deploy.files import atomic_path

FOLDER_VARIABLE = "ODM_KERNEL_CACHE"
"""Environment variable with the folder in which every verb, and `Engine`, keeps the kernels of the plans it opens."""


def file_in_folder(plan: bytes) -> Path | None:
    """The plan's own file in the folder that the environment names; None where it names none."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) / f"{hashlib.sha256(plan).hexdigest()[:16]}.kernels" if folder else None


class KernelCache:
    """One cache file in use. Execution contexts and threads may share it."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is read when the first context is made, and need not exist."""
        self._path = path
        self._lock = threading.Lock()
        self._cache: Any = None
        self._stored = b""

    def attach(self, config: Any) -> None:
        """Let contexts made with `config` take kernels from here, and leave new ones.

        Args:
            config: a `tensorrt_rtx.IRuntimeConfig`. A CUDA context must be current: the file is held against its GPU.
        """
        with self._lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                with suppress(OSError):
                    stored = self._path.read_bytes()
                    # What does not fit here is as good as nothing, and replaced on saving.
                    if stored and self._cache.deserialize(stored):
                        self._stored = stored
            config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file where there is something new in it. One that cannot be written costs time, not results."""
        with self._lock:
            if self._cache is None:
                return
            found = bytes(self._cache.serialize() or b"")
            if found in (b"", self._stored):
                return
            with suppress(OSError, InputError), atomic_path(self._path) as temporary:
                temporary.write_bytes(found)
                self._stored = found
