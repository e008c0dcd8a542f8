"""Tensors in GPU memory at both ends of an engine: borrowed from other libraries by DLPack, or newly allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from odm_deploy.errors import InputError
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor, SupportsDlpack
from odm_deploy.runtimes.tensor_info import TensorInfo
from odm_deploy.runtimes.tensorrt.cuda import Cuda, Event
from odm_deploy.runtimes.tensorrt.device_array import DeviceArray

_GPU = (CUDA, 0)
_LEGACY_DEFAULT_STREAM = 1
"""DLPack's number for the stream whose handle is 0."""


def borrow_tensors(
    tensors: Mapping[str, SupportsDlpack], wanted: Sequence[TensorInfo], stream: int
) -> dict[str, BorrowedTensor]:
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
