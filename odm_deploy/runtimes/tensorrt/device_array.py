"""An array in GPU memory, as engines return it: no numbers to look at, but any tensor library takes it by DLPack."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from odm_deploy.runtimes.dlpack import export_dlpack

_LEGACY_DEFAULT_STREAM = 1
_DO_NOT_SYNCHRONIZE = -1


class DeviceArray:
    """A contiguous array outside numpy's reach; `torch.from_dlpack(array)` or `cupy.from_dlpack(array)` reads it.

    Its memory is freed when neither this object nor a tensor made from it is left.
    """

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: tuple[int, int],
        free: Callable[[int], None],
        let_wait: Callable[[int], None] | None = None,
    ) -> None:
        """Take over memory.

        Args:
            pointer: address of the first element.
            shape: sizes.
            dtype: type of an element.
            device: DLPack's device type and index.
            free: frees the memory at an address.
            let_wait: makes a stream, given by its handle, wait until the contents are there; None when they are.
        """
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._let_wait = let_wait
        # Not at exit: the driver has gone by then, and taken the memory along.
        weakref.finalize(self, free, pointer).atexit = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> Any:
        """Export the memory; `stream` is where the consumer will use it (None: the legacy default stream)."""
        if self._let_wait is not None and stream != _DO_NOT_SYNCHRONIZE:
            self._let_wait(_LEGACY_DEFAULT_STREAM if stream is None else stream)
        return export_dlpack(self.pointer, self.shape, self.dtype, self._device, self._outlive)

    def _outlive(self) -> None:
        """Called when a consumer is done. That the export refers to this method is what keeps the memory until then."""

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"
