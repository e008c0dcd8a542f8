"""DLPack without an array library: look into other libraries' tensors, and hand memory out as one.

Structures of `dlpack.h`, version 0.8, which every library still speaks; the Python side is the array API's
`__dlpack__`: https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import InputError

CPU = 1
CUDA = 2
CUDA_HOST = 3
"""Page-locked host memory."""

_KINDS = {"i": 0, "u": 1, "f": 2}
_CAPSULE = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

# Prototypes of our own: setting argtypes on ctypes.pythonapi would change them for the whole process.
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))


class SupportsDlpack(Protocol):
    """Any tensor: of torch, cupy, jax, numpy, or a `DeviceArray`."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


Tensors = Mapping[str, SupportsDlpack]
"""Tensors by name."""


def host_array(array: Any, label: str) -> NDArray[Any]:
    """`array` as a numpy array; tensors of other libraries come over by DLPack without a copy.

    Raises:
        InputError: it exports no DLPack, or lies in the memory of a GPU. `label` names it in the message.
    """
    if isinstance(array, np.ndarray):
        return array
    try:
        device, _ = array.__dlpack_device__()
        if device not in (CPU, CUDA_HOST):
            raise BufferError("it lies in the memory of a device")
        return np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        why, fix = f"{type(array).__name__}: {error}", "pass a numpy array or a tensor in host memory"
        raise InputError(f"{label} cannot be read as an array", why=why, fix=fix) from error


class BorrowedTensor:
    """A contiguous tensor of another library. Its memory stays valid as long as this object lives."""

    def __init__(self, source: SupportsDlpack, *, stream: int | None = None, label: str = "the tensor") -> None:
        """Borrow the memory of `source`, to use it on a CUDA stream, which the other library makes wait for its writes.

        Raises:
            InputError: it exports nothing, is not contiguous, or of a type that numpy has no name for.
        """
        try:
            capsule: Any = source.__dlpack__() if stream is None else source.__dlpack__(stream=stream)
        except (AttributeError, BufferError, RuntimeError, TypeError) as error:
            why, fix = f"{type(source).__name__}: {error}", "pass a numpy array or a detached, contiguous tensor"
            raise InputError(f"{label} cannot be read as an array", why=why, fix=fix) from error
        if not _is_valid(id(capsule), _CAPSULE):
            raise InputError(f"{label} cannot be read as an array", why=f"{type(source).__name__} exports no dltensor")
        # The capsule is never marked as consumed: when it goes, it frees the export by itself.
        self._capsule = capsule
        tensor = _ManagedTensor.from_address(_pointer_in(id(capsule), _CAPSULE)).tensor
        self.shape: tuple[int, ...] = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        self.dtype = _numpy_type(tensor.dtype, label)
        self.device: tuple[int, int] = (tensor.device.kind, tensor.device.index)
        self.pointer: int = (tensor.data or 0) + tensor.byte_offset
        if tensor.strides and math.prod(self.shape):
            strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim))
            if any(size > 1 and a != b for size, a, b in zip(self.shape, strides, _compact(self.shape), strict=True)):
                raise InputError(f"{label} is not contiguous", why=f"its strides are {strides}", fix="copy it first")


def export_dlpack(
    pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], release: Callable[[], None]
) -> Any:
    """A DLPack capsule over memory at `pointer`; `release` is called once, when the last user is done with it."""
    sizes, strides = (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(shape))(*_compact(shape))
    managed = _ManagedTensor()
    managed.tensor = _Tensor(
        pointer,
        _Device(*device),
        len(shape),
        _DataType(_KINDS[dtype.kind], dtype.itemsize * 8, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    managed.deleter = _delete_export
    address = ctypes.addressof(managed)
    # The structure and its arrays live until the consumer calls the deleter.
    _exports[address] = (release, managed, sizes, strides)
    return _new_capsule(address, _CAPSULE, ctypes.cast(_destroy_capsule, ctypes.c_void_p))


def _delete(address: int) -> None:
    release, *_ = _exports.pop(address)
    release()


def _destroy(capsule: int) -> None:
    """Free an export nobody consumed: consumers rename the capsule and call the deleter themselves."""
    if _is_valid(capsule, _CAPSULE):
        managed = _ManagedTensor.from_address(_pointer_in(capsule, _CAPSULE))
        managed.deleter(ctypes.addressof(managed))


# One callback for all exports: one of its own for each would be freed by its own last call.
_delete_export = _Deleter(_delete)
_destroy_capsule = _Destructor(_destroy)
_exports: dict[int, tuple[Any, ...]] = {}


def _numpy_type(kind: _DataType, label: str) -> np.dtype[Any]:
    letters = {number: letter for letter, number in _KINDS.items()}
    if kind.lanes != 1 or kind.bits % 8 or kind.kind not in letters:
        raise InputError(f"{label} cannot be read as an array", why=f"numpy has no such type ({kind.bits} bits)")
    return np.dtype(f"{letters[kind.kind]}{kind.bits // 8}")


def _compact(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
