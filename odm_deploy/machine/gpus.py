"""The NVIDIA GPUs of this machine, asked of the CUDA driver (libcuda) itself: every CUDA library is slow to load."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from odm_deploy.errors import MissingError
from odm_deploy.installing import install_extra

_CU_ATTRIBUTE_MAJOR = 75
_CU_ATTRIBUTE_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU the CUDA driver can use."""

    index: int
    """Its number among the GPUs that CUDA_VISIBLE_DEVICES leaves visible."""
    name: str
    compute_capability: tuple[int, int]
    """(major, minor), for example (8, 6)."""
    memory_mib: int
    uuid: str = ""
    """As `nvidia-smi -L` prints it, `GPU-` and hexadecimal digits; empty where the driver does not tell."""

    def __str__(self) -> str:
        return f"GPU {self.index}, {self.name} ({self.sm})"

    @property
    def sm(self) -> str:
        """The architecture as compilers and TensorRT spell it, for example `SM86`."""
        return f"SM{self.compute_capability[0]}{self.compute_capability[1]}"


@functools.cache
def find_gpus() -> tuple[Gpu, ...]:
    """All GPUs the CUDA driver can use; empty when there is no driver or no GPU. Never raises."""
    return query_driver(_load_driver())


@functools.cache
def driver_cuda_major() -> int | None:
    """The newest CUDA the installed driver runs, such as 13; None without a driver."""
    cuda, version = _load_driver(), ctypes.c_int()
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000


def require_any_gpu(what: str) -> None:
    """Check that there is a GPU.

    Args:
        what: what cannot be done without one, as the first clause of the error.

    Raises:
        MissingError: there is none.
    """
    if not find_gpus():
        raise MissingError(
            what,
            why="there is no NVIDIA GPU that the driver can use",
            fix="run the bundle on the CPU with --runtime openvino"
            + ("" if importlib.util.find_spec("openvino") else f" ({install_extra('cpu')})"),
        )


def query_driver(cuda: ctypes.CDLL | None) -> tuple[Gpu, ...]:
    """The GPUs of a loaded CUDA driver (CUDA driver API, device management); none without a driver."""
    if cuda is None or cuda.cuInit(0) != 0:
        return ()
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    gpus: list[Gpu] = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name, memory, mark = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.create_string_buffer(16)
        answers = (
            cuda.cuDeviceGet(ctypes.byref(device), index),
            cuda.cuDeviceGetName(name, len(name), device),
            cuda.cuDeviceGetAttribute(ctypes.byref(major), _CU_ATTRIBUTE_MAJOR, device),
            cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CU_ATTRIBUTE_MINOR, device),
            cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        )
        if not any(answers):
            known = cuda.cuDeviceGetUuid(mark, device) == 0
            gpus.append(
                Gpu(
                    index,
                    name.value.decode(errors="replace"),
                    (major.value, minor.value),
                    memory.value >> 20,
                    f"GPU-{uuid.UUID(bytes=mark.raw)}" if known else "",
                )
            )
    return tuple(gpus)


@contextmanager
def primary_context(gpu: Gpu, cuda: ctypes.CDLL | None = None) -> Generator[None]:
    """Hold the CUDA context that all libraries of a process share on `gpu`, made now unless it is there already.

    It takes some hundred MiB of GPU memory, which no model needs. Where there is no driver, nothing is held.
    """
    cuda, device, context = cuda or _load_driver(), ctypes.c_int(), ctypes.c_void_p()
    held = cuda is not None and not any(
        (
            cuda.cuInit(0),
            cuda.cuDeviceGet(ctypes.byref(device), gpu.index),
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        )
    )
    try:
        yield
    finally:
        if cuda is not None and held:
            cuda.cuDevicePrimaryCtxRelease_v2(device)


def _load_driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
