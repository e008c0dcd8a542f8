"""Tensors in GPU memory at both ends of an engine: borrowed from other libraries by DLPack, or newly allocated."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from odm_deploy.errors import InputError
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor, Tensors, export_dlpack
from odm_deploy.runtimes.tensor_info import TensorInfo
from odm_deploy.runtimes.tensorrt.cuda import Cuda, Event

_GPU = (CUDA, 0)
_LEGACY_DEFAULT_STREAM = 1
"""DLPack's number for the stream whose handle is 0."""
_DO_NOT_SYNCHRONIZE = -1


class DeviceArray:
    """A contiguous array with no numbers to look at; `torch.from_dlpack(array)` or `cupy.from_dlpack(array)` reads it.

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
        """Take over the memory at `pointer`, on a DLPack `device` (type, index).

        `free` frees it; `let_wait` makes a stream, given by its handle, wait until the contents are there (None: they
        are).
        """
        self.pointer, self.shape, self.dtype = pointer, shape, dtype
        self._device, self._let_wait = device, let_wait
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


def borrow_tensors(tensors: Tensors, wanted: Sequence[TensorInfo], stream: int) -> dict[str, BorrowedTensor]:
    """Look into tensors of other libraries, which make `stream`, given by its handle, wait for what they still write.

    Raises:
        InputError: a tensor is missing, unknown, on another device, not contiguous, or does not fit.
    """
    if set(tensors) != {info.name for info in wanted}:
        raise InputError(
            "these are not the tensors of the engine",
            why=f"given {sorted(tensors)}, it has {sorted(info.name for info in wanted)}",
        )
    borrowed: dict[str, BorrowedTensor] = {}
    for info in wanted:
        source = tensors[info.name]
        place = tuple(map(int, source.__dlpack_device__()))
        if place != _GPU:
            raise InputError(
                f"tensor {info.name!r} is not in the memory of GPU 0",
                why=f"its DLPack device is {place}",
                fix="move it there, or pass arrays in host memory to `run`",
            )
        tensor = BorrowedTensor(source, stream=stream or _LEGACY_DEFAULT_STREAM, label=f"tensor {info.name!r}")
        info.check(tensor)
        borrowed[info.name] = tensor
    return borrowed


def new_arrays(cuda: Cuda, wanted: Sequence[TensorInfo], ready: Event) -> dict[str, DeviceArray]:
    """Arrays of these types and shapes, whose consumers wait for `ready`."""

    def let_wait(stream: int) -> None:
        cuda.borrowed_stream(stream).wait_for(ready)

    arrays: dict[str, DeviceArray] = {}
    for info in wanted:
        shape = tuple(size or 0 for size in info.shape)
        pointer = cuda.allocate(math.prod(shape) * info.dtype.itemsize)
        # Freeing waits for work that uses the memory: callers may drop a result before it is there.
        arrays[info.name] = DeviceArray(pointer, shape, info.dtype, _GPU, cuda.free, let_wait)
    return arrays
