"""What the CUDA driver tells about GPUs: two, fewer, none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from odm_deploy.machine.gpus import Gpu, primary_context, query_driver

DRIVER = r"""
#include <string.h>
#include <stddef.h>
static int first(int device) { return device == 40; }
int cuInit(unsigned flags) { return RESULT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device)
{ strncpy(name, first(device) ? "NVIDIA One" : "NVIDIA Two", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device)
{ *value = which == 75 ? 8 : first(device) ? 6 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device)
{ *bytes = (size_t)24 << 30; return first(device) ? 0 : FAIL_SECOND; }
int cuDeviceGetUuid(char *uuid, int device)
{ memset(uuid, 0x0a, 16); return first(device) ? 0 : 801; }
int held[42];
int cuDevicePrimaryCtxRetain(void **context, int device) { held[device]++; *context = held; return FAIL_SECOND; }
int cuDevicePrimaryCtxRelease_v2(int device) { held[device]--; return 0; }
"""


@pytest.fixture
def driver(tmp_path):
    """Compiles a CUDA driver with two GPUs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def compile_driver(result=0, fail_second=0):
        (tmp_path / "cuda.c").write_text(DRIVER)
        macros = [f"-DRESULT={result}", f"-DFAIL_SECOND={fail_second}"]
        library = tmp_path / f"libcuda{result}{fail_second}.so"
        command = [compiler, "-shared", "-fPIC", *macros, "-o", library, tmp_path / "cuda.c"]
        subprocess.run(command, check=True, timeout=60)
        return ctypes.CDLL(str(library))

    return compile_driver


def test_driver_is_asked_for_names_capabilities_and_memory(driver):
    gpus = query_driver(driver())
    assert gpus == (
        Gpu(0, "NVIDIA One", (8, 6), 24576, "GPU-0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a"),
        Gpu(1, "NVIDIA Two", (8, 9), 24576),
    )
    assert gpus[1].sm == "SM89"


def test_failing_driver_or_device_is_no_exception(driver):
    assert query_driver(driver(result=100)) == ()
    assert [gpu.index for gpu in query_driver(driver(fail_second=2))] == [0]
    assert query_driver(None) == ()


@pytest.mark.parametrize("refused", [0, 2])
def test_a_context_is_held_once_and_given_back(driver, refused):
    cuda = driver(fail_second=refused)
    held = (ctypes.c_int * 42).in_dll(cuda, "held")
    before = held[41]
    with primary_context(Gpu(1, "NVIDIA Two", (8, 9), 1), cuda):
        assert held[41] == before + 1
    # What was refused is not given back.
    assert held[41] == before + bool(refused)
